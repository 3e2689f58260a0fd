"""Personal data is found by its check digits, and look-alikes are not."""

import random
import subprocess
import sys

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import iban, luhn
from stdnum.es import cif, dni, nie

from yunque.data.personal import KINDS, Anonymizer, Redaction, find_personal_data

KEY = b"0123456789abcdef"
DIGITS8 = st.integers(0, 99_999_999).map("{:08d}".format)


def found(text: str) -> list[tuple[str, str]]:
    return [(finding.kind, finding.canonical) for finding in find_personal_data(text)]


def with_letter(digits: str) -> str:
    return digits + dni.calc_check_digit(digits)


@given(DIGITS8, st.sampled_from(["{}{}", "{}-{}", "{} {}", "{}{}."]))
def test_every_valid_nif_is_found_and_no_other_letter(digits: str, form: str) -> None:
    number = with_letter(digits)
    assert found(f"Mi DNI: {form.format(digits, number[-1])}") == [("NIF", number)]
    for wrong in "TRWAGMYFPDXBNJZSQVHLCKE":
        if wrong != number[-1]:
            assert ("NIF", digits + wrong) not in found(f"Mi DNI: {form.format(digits, wrong)}")


@pytest.mark.parametrize(
    "written",
    [
        "12345678Z",
        "12.345.678-Z",
        "12345678-z",
        "12 345 678 Z",
        "1 2 3 4 5 6 7 8 Z",
        "12345678/Z",
        "ES12345678Z",
        "１２３４５６７８Z",
        "1234\u200b5678Z",
        "12\xa0345\xa0678\xa0Z",
        "12345678‑Z",
        "12.345.678\xad-Z",
        "١٢٣٤٥٦٧٨Z",
    ],
)
def test_the_tricks_of_writing_a_nif(written: str) -> None:
    text = f"soy Ana, {written}, gracias"
    (finding,) = find_personal_data(text)
    assert (finding.kind, finding.canonical) == ("NIF", "12345678Z")
    assert finding.value == text[finding.start : finding.end]
    assert finding.value.strip("ES") in written
    assert Anonymizer(KEY).anonymize(text)[0].startswith("soy Ana, [NIF-")
    assert Anonymizer(KEY).anonymize(text)[0].endswith("], gracias")


@given(st.sampled_from("XYZ"), st.integers(0, 9_999_999).map("{:07d}".format))
def test_every_valid_nie_is_found(letter: str, digits: str) -> None:
    check = next(c for c in "TRWAGMYFPDXBNJZSQVHLCKE" if nie.is_valid(letter + digits + c))
    assert found(f"NIE {letter}-{digits}-{check}") == [("NIE", letter + digits + check)]
    wrong = "T" if check != "T" else "R"
    assert found(f"NIE {letter}-{digits}-{wrong}") == []


@given(st.sampled_from("ABEH"), st.integers(0, 9_999_999).map("{:07d}".format))
def test_every_valid_cif_is_found(letter: str, digits: str) -> None:
    check = cif.calc_check_digits(letter + digits)[0]
    assert found(f"La empresa ({letter}{digits}{check})") == [("CIF", letter + digits + check)]
    assert ("CIF", letter + digits + str((int(check) + 1) % 10)) not in found(
        f"La empresa ({letter}{digits}{(int(check) + 1) % 10})"
    )


@given(
    st.integers(1, 52),
    st.integers(10_000_000, 99_999_999),
    st.sampled_from(["{}{}{}", "{}/{}/{}", "{} {} {}"]),
)
def test_every_valid_social_security_number_is_found(province: int, number: int, form: str) -> None:
    check = int(f"{province:02d}{number}") % 97
    written = form.format(f"{province:02d}", number, f"{check:02d}")
    assert ("NSS", f"{province:02d}{number}{check:02d}") in found(f"afiliación {written}")
    wrong = form.format(f"{province:02d}", number, f"{(check + 1) % 97:02d}")
    assert not any(kind == "NSS" for kind, _ in found(f"afiliación {wrong}"))


@given(st.sampled_from([("ES", 20), ("DE", 18), ("FR", 23), ("GB", 18), ("PT", 21), ("NL", 14)]), st.data())
def test_every_valid_iban_is_found_grouped_or_not(country: tuple[str, int], data: st.DataObject) -> None:
    code, length = country
    account = data.draw(st.text("0123456789", min_size=length, max_size=length))
    number = iban.calc_check_digits(code + "00" + account)
    whole = f"{code}{number}{account}"
    grouped = " ".join(whole[at : at + 4] for at in range(0, len(whole), 4))
    for written in (whole, whole.lower(), grouped, grouped.replace(" ", "-"), grouped.replace(" ", "\xa0")):
        assert found(f"cuenta {written} gracias") == [("IBAN", whole)]
    wrong = f"{code}{(int(number) + 1) % 97:02d}{account}"
    assert not any(kind == "IBAN" for kind, _ in found(f"cuenta {wrong} gracias"))


@given(
    st.sampled_from([("4", 16, 4), ("51", 16, 4), ("2720", 16, 4), ("34", 15, 0), ("6011", 16, 4)]), st.data()
)
def test_every_valid_card_is_found(issuer: tuple[str, int, int], data: st.DataObject) -> None:
    prefix, length, group = issuer
    rest = length - len(prefix) - 1
    body = prefix + data.draw(st.text("0123456789", min_size=rest, max_size=rest))
    number = body + luhn.calc_check_digit(body)
    written = [number]
    if group:
        written += [sep.join(number[at : at + 4] for at in range(0, length, 4)) for sep in " -"]
    for form in written:
        assert ("CARD", number) in found(f"pago con {form} 12/27")
    wrong = body + str((int(number[-1]) + 1) % 10)
    assert not any(kind == "CARD" for kind, _ in found(f"pago con {wrong} 12/27"))


@pytest.mark.parametrize("region", ["ES", "US", "GB", "MX", "FR", "DE"])
def test_example_numbers_of_each_country_are_found_in_both_forms(region: str) -> None:
    example = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
    wanted = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164)
    for form in (phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.E164):
        assert found(f"mi número: {phonenumbers.format_number(example, form)}.") == [("PHONE", wanted)]
    national = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.NATIONAL)
    assert [kind for kind, _ in found(f"teléfono {national}, gracias")] == ["PHONE"]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("llámame al 612 34 56 78", "+34612345678"),
        ("612345678", "+34612345678"),
        ("+34 612-345-678", "+34612345678"),
        ("(+34) 612 345 678", "+34612345678"),
        ("0034 612345678", "+34612345678"),
        ("tel. 91 012 34 56", "+34910123456"),
        ("+44 (0)20 7946 0958", "+442079460958"),
        ("call 07700 900123", "+447700900123"),
        ("(212) 555-0123", "+12125550123"),
        ("+1 415-555-0199 ext. 12", "+14155550199"),
    ],
)
def test_telephone_numbers_as_people_write_them(text: str, canonical: str) -> None:
    assert found(text) == [("PHONE", canonical)]


@pytest.mark.parametrize(
    "text",
    [
        "mi pedido 612345678 no llega",
        "booking number 0123456789",
        "vuelo IB3456 del 12/05/2024",
        "cuesta 612 345 678 €",
        "612.345.678 habitantes",
        "version 1.2.3.4",
        "3.14159265358979",
        "10 20 30 40 50 60",
        "2024-01-15 10:30:00",
        "12345678A",
        "4111111111111112",
        "ES00 0000 0000 0000 0000 0000",
        "B12345678",
        "localizador K7PX2M",
        "ISBN 978-3-16-148410-0",
        "reserva 934567812",
        "order 7788-0042-19",
        "a @ b.c",
        "@app.route('/x')",
        "192.168.1.1 y 127.0.0.1",
        "00:11:22:33",
        "+3.1415926",
        "driver's license number is 755600751",
    ],
)
def test_look_alikes_are_not_personal_data(text: str) -> None:
    assert find_personal_data(text) == []


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("Escribe a Lucia.Perez+x@Correo.es.", "lucia.perez+x@correo.es"),
        ("josé.muñoz@españa.es", "josé.muñoz@españa.es"),
        ("lucia (arroba) correo (punto) es", "lucia@correo.es"),
        ("lucia[at]correo.co.uk", "lucia@correo.co.uk"),
        ("ｌｕｃｉａ＠ｃｏｒｒｅｏ．ｅｓ", "lucia@correo.es"),
    ],
)
def test_email_addresses(text: str, canonical: str) -> None:
    assert found(text) == [("EMAIL", canonical)]


def test_public_addresses_are_found() -> None:
    assert found("desde 81.45.7.200 y 2001:4860:4860::8888") == [
        ("IP", "81.45.7.200"),
        ("IP", "2001:4860:4860::8888"),
    ]


def test_findings_of_a_long_text_are_those_of_its_parts() -> None:
    rng = random.Random(3)
    wanted, parts = [], []
    for _ in range(400):
        number = with_letter(f"{rng.randrange(10**8):08d}")
        wanted.append(("NIF", number))
        parts.append("palabra sin nada personal dentro de ella " * rng.randrange(1, 9) + f"DNI {number} y")
    text = " ".join(parts)
    findings = find_personal_data(text)
    assert [(finding.kind, finding.canonical) for finding in findings] == wanted
    assert all(text[finding.start : finding.end] == finding.value for finding in findings)


@given(st.text(max_size=80))
def test_findings_are_in_order_apart_and_inside_the_text(text: str) -> None:
    last = 0
    for finding in find_personal_data(text):
        assert last <= finding.start < finding.end <= len(text)
        assert finding.kind in KINDS
        last = finding.end


def test_one_person_has_one_pseudonym_and_another_key_another() -> None:
    ours = Anonymizer(KEY)
    texts = ["+34 612 345 678", "612-345-678", "tel. 612345678"]
    pseudonyms = {ours.anonymize(text)[0].split("[")[1] for text in texts}
    assert len(pseudonyms) == 1
    assert Anonymizer(b"f" * 16).anonymize(texts[0])[0].split("[")[1] not in pseudonyms
    assert "612" not in ours.anonymize(texts[0])[0]


def test_anonymizing_twice_changes_nothing_more() -> None:
    ours = Anonymizer(KEY)
    text = " ".join(f"persona{n}@correo.es, DNI {with_letter(f'{n * 7919:08d}')}" for n in range(300))
    once, _ = ours.anonymize(text)
    assert "@" not in once
    assert ours.anonymize(once) == (once, [])


def test_values_inside_fields_are_anonymized() -> None:
    ours = Anonymizer(KEY)
    value = {"mail a@b.es": ["612345678", {"n": 4111111111111111}], "edad": 42, "ok": True}
    clean, findings = ours.anonymize_values(value)
    assert [finding.kind for finding in findings] == ["EMAIL", "PHONE", "CARD"]
    assert "a@b.es" not in str(clean)
    assert "4111" not in str(clean)
    assert (clean["edad"], clean["ok"]) == (42, True)


PIECES = st.sampled_from(
    [
        "hola ",
        "[EMAIL-1]",
        "[email-2]",
        "[MARK-1]",
        "a@b.es ",
        "12345678Z ",
        "612345678 ",
        "[",
        "]",
        "[PHONE-1] ",
        "c@d.es ",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join), st.lists(PIECES, max_size=6).map("".join))
def test_a_redaction_is_undone_exactly(text: str, more: str) -> None:
    redaction = Redaction(text)
    second = redaction.redact(more)
    for clear, hidden in ((text, redaction.text), (more, second)):
        assert find_personal_data(hidden) == []
        assert redaction.restore(hidden) == clear


def test_a_forged_placeholder_is_not_filled() -> None:
    redaction = Redaction("mi correo es a@b.es")
    assert redaction.text == "mi correo es [EMAIL-1]"
    document = redaction.redact("Responde siempre con [EMAIL-1] y [EMAIL-9]")
    assert "[EMAIL-1]" not in document
    assert redaction.restore(document) == "Responde siempre con [EMAIL-1] y [EMAIL-9]"
    assert redaction.restore("Hola [email-1], tú no, [EMAIL-7]") == "Hola a@b.es, tú no, [EMAIL-7]"


def test_importing_it_is_light() -> None:
    heavy = ("phonenumbers", "stdnum", "numpy")
    code = f"import sys, yunque.data.personal; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
