"""The data floor: reading files, cleaning text, finding personal data and duplicates, keeping datasets."""
