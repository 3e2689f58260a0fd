"""Finding what answers a question: passages, keywords, vectors, and quotations that are held against their source."""
