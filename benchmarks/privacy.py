"""How precise are the counts of e-mail and IP addresses, telephone, card and account numbers and keys, how many are missed, and how fast is it?

    python benchmarks/privacy.py [FILE…] [--megabytes 5] [--peer PYTHON]

First a labelled set: values of each kind made by their own check-sum rules, in sentences, tables, code and Chinese, and texts that only look alike
(versions, DOIs, citations, ISBNs, coordinates, chemical names, digests, dates, statistics). Then, of every Parquet or JSON Lines file named, everything that
fires in its first megabytes, with the words around it, to be read by a person, and MB of UTF-8 a second of processor time for the signal and
the clean step. With `--peer`, datatrove's PIIFormatter (e-mail and IP only) beside them on the same texts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import orjson
import pyarrow as pa
from token_parity import documents

from curation.signals import SIGNALS
from curation.text.clean import clean_all
from curation.text.identifiers import KINDS, found

PEER = """
import sys, time, orjson
from datatrove.pipeline.formatters import PIIFormatter
formatter = PIIFormatter()
texts = [orjson.loads(line) for line in open(sys.argv[1], "rb")]
start = time.process_time()
for text in texts:
    formatter.format(text)
print(time.process_time() - start)
"""


def luhn(digits: str) -> str:
    """`digits` with their check digit."""
    total = sum(sum(divmod(2 * int(digit), 10)) if place % 2 == 0 else int(digit) for place, digit in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def iban(country: str, rest: str) -> str:
    number = "".join(str(int(letter, 36)) for letter in rest + country + "00")
    return f"{country}{98 - int(number) % 97:02}{rest}"


def grouped(value: str, size: int = 4, by: str = " ") -> str:
    return by.join(value[start : start + size] for start in range(0, len(value), size))


EMAILS = [
    "jane.doe@mail.example.co.uk",
    "j_smith+news@uni-bonn.de",
    "info@openstax.org",
    "o.brien99@ncbi.nlm.nih.gov",
    "x@y.io",
    "han@163.com",
    "MARY-ANN@Hospital.ORG",
    "a.b.c.d@sub.sub2.domain.museum",
    "k%27@list.server.net",
    "first.last@dept.univ.ac.jp",
]
IPS = [
    "185.12.64.2",
    "93.184.216.34",
    "172.15.0.1",
    "192.169.1.1",
    "130.60.24.7",
    "2606:4700:4700::1111",
    "2001:4860:4860::8888",
    "2a00:1450:4001:81b::200e",
    "223.5.50.5",
    "11.0.0.21",
]
PHONES = [
    "+49 30 1234567",
    "+1 (212) 555-0123",
    "+442071838750",
    "(415) 555-2671",
    "212-555-0199",
    "+86 138 0013 8000",
    "+33 1 42 68 53 00",
    "646.555.0147",
    "+91-98765-43210",
    "+41 44 634 21 11",
]
CALLED = [
    "Tel: 030 123456",
    "phone 555-1234",
    "Fax. 0228/733456",
    "mobile: 07700 900123",
    "手机：13800138000",
    "电话: 010-62751234",
    "Telephone number: 01632 960001",
    "传真：(021)65642222",
    "Phone no. 800 555 0100",
    "tel 0044 20 7946 0018",
]
CARDS = [
    luhn("411111111111111"),
    luhn("555555555555444"),
    luhn("222300004840001"),
    luhn("37828224631000"),
    luhn("601111111111111"),
    luhn("353011133330000"),
    luhn("3852000002323"),
    luhn("621234567890123"),
    luhn("400000000000306"),
    luhn("510510510510510"),
]
IBANS = [
    iban("DE", "370400440532013000"),
    iban("GB", "NWBK60161331926819"),
    iban("FR", "20041010050500013M02606"),
    iban("CH", "00762011623852957"),
    iban("NL", "ABNA0417164300"),
    iban("MT", "MALT011000012345MTLCAST001S"),
    iban("NO", "86011117947"),
    iban("BE", "539007547034"),
    iban("ES", "21000418450200051332"),
    iban("IT", "X0542811101000000123456"),
]
KEYS = [
    "AKIAIOSFODNN7QQRSTUV",
    "ghp_" + "a1B2c3D4e5" * 4,
    "xoxb-123456789012-abcdefGHIJKL",
    "AIza" + "SyD3aBcDeFgHiJkLmNoPqRsTuVwXyZ01234"[:35],
    "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "sk-proj-Zx81kQpW03mNbVcR7tYuIo92LaSd",
    "glpat-9aB8cD7eF6gH5iJ4kL3m",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7\n-----END RSA PRIVATE KEY-----",
]
ASSIGNED = [
    'password = "x8Kq2LmZ9vR4tYw7Pb3N"',
    "api_key: 9f86d081884c7d659a2feaa0c55ad015",
    "SECRET_KEY='django-9s8d7f6g5h4j3k2l1q0w'",
    '"access_token": "ya29A0ARrdaM8k3jH5Lq0ZxC"',
    "export AUTH_TOKEN=4f3c2b1a0d9e8f7a6b5c4d3e",
    "client-secret: Zm9vYmFyYmF6cXV4MTIzNDU2",
    "Authorization token: Bearer 3q2+7w9vX5pLmNkJhGfD8s==",
    "aws_secret_access_key = wJalrXUtnFEMIK7MDENGbPxRfiCYzz3kPqLm90Ab",
    "passwd: 7hGk2Lq9Xw4Rz8Tn5VbC",
    "credentials=eyJ1IjoiYWRtaW4iLCJwIjoiMTIzIn0",
]
FRAMES = ["{}", "Please write to {}, thank you.", "<td>{}</td>", "联系方式：{}。", "row 7 | {} | ok"]

NOT_ANY = [
    *("version 1.2.3.4", "v8.8.8.8", "8.8.8.8 or 1.1.1.1",
        "kernel 2.6.18.6 and 3.3.9.45",
        "Python 3.11.7, numpy 2.4.6", "see Section 2.3.4.1 of the standard", "release 10.15.7.1", "OID 1.3.6.1.4.1.311", "chapter 12.4.3.2", "Fig. 3.1.2.4", "127.0.0.1 and ::1", "10.0.0.254", "192.168.178.20/24", "172.31.255.255", "169.254.10.10", "203.0.113.77", "198.51.100.1", "2001:db8::1", "fe80::1ff:fe23:4567:890a", "256.300.1.1", "1.2.3", "std::vector::iterator", "12:30:45.123", "a::b::c", "00:1B:44:11:3A:B7", "239.255.255.250"),
    *("doi:10.1016/j.cell.2020.01.001", "https://doi.org/10.1093/nar/gkaa1100", "PMID: 31978945", "PMC7092803", "arXiv:2112.11446v2", "ISBN 978-3-16-148410-0", "ISBN 9783161484100", "ISSN 0378-5955", "NCT04280705", "ORCID 0000-0002-1825-0097", "EudraCT 2020-001038-36", "CAS 50-78-2", "CAS 7732-18-5", "LC50 1,234.5 mg", "GenBank MN908947.3", "rs1801133, rs429358", "chr7:55019017-55211628", "NM_000546.6:c.215C>G", "UniProt P04637", "ATCC 25922"),
    *("2020-01-31", "31/01/2020 14:35:27", "2019-2020-2021", "12.03.1998 - 14.03.1998", "20200131143527", "1990, 1995, 2000 and 2005", "from 1914-1918 and 1939-1945", "1585742127", "1617235200000", "2024-05-06T07:08:09Z", "May 5 1998 10 30", "199-0 200-1"),
    *("40.7128, -74.0060", "51.507351 -0.127758", "N 48 51 23.81 E 2 21 07.99", "48.8566969, 2.3514616", "x = -122.4194155, y = 37.7749295", "UTM 32U 691608 5334765"),
    *("2,4,6-trinitrotoluene", "1-(4-chlorophenyl)-4,4-dimethyl-3-(1,2,4-triazol-1-ylmethyl)pentan-3-ol", "C22H19Cl2NO3", "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3", "CC(=O)OC1=CC=CC=C1C(=O)O", "InChIKey LFQSCWFLJHTTHZ-UHFFFAOYSA-N", "(2R,3S,4R,5R)-2,3,4,5,6-pentahydroxyhexanal", "β-D-glucose 6-phosphate 1-dehydrogenase"),
    *("sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "commit 3f2504e04f8941d39a0c0305e82c3301deadbeef", "md5 d41d8cd98f00b204e9800998ecf8427e", "uuid 123e4567-e89b-12d3-a456-426614174000", "ETag: 5d8c72a5edda8d6a-0012", "sha512-Zm9v integrity", "0xDEADBEEFCAFEBABE1234567890ABCDEF", "git checkout 9fceb02d0ae598e95dc970b74767f19372d61af8", "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUA", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7vbqajDw4o6gJy8UtmIbkcpnk"),
    *("the password is stored in a file", "token = tokenizer.next_token(stream)", 'api_key = os.environ["API_KEY"]', "password: your_password_goes_here", "secret = get_secret_value_from_vault", "PASSWORD_RESET_TIMEOUT_DAYS = 3", "auth_key = load_authentication_key_file", "tokens: 1000000000000000000000", "access_token=<your-access-token-here>", "-----BEGIN PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----", "secret_santa: aaaaaaaaaaaaaaaaaaaaaaaaa1"),
    *("git@github.com:org/repo.git", "@decorator.name", "user@localhost", "icon@2x.png",
        "android.@internal.R.id.progress", "a @ b.c", "lodash@4.17.21", "x@, @y.com", "foo@bar", "mailto:", "precision@10 and recall@100", "logo@3x.webp", "@media screen and (max-width: 600px)", "A@B = C"),
    *("4111 1111 1111 1112", "1234567890123456", "0.4111111111111111", "4111,111111111111", "0000 0000 0000 0000", "ID 9999999999999995", "3.14159265358979323846", "1.7976931348623157e+308", "6.02214076e23", "ACGTACGTACGTACGT", "4444444444444448"),
    *("DE00 3704 0044 0532 0130 00", "GB29 NWBK 6016 1331 9268 18", "XX89 3704 0044 0532 0130 00", "US12 3456 7890 1234 5678", "AB12 CDEF 3456", "IT IS 12 O CLOCK AND ALL IS WELL", "FR76 is a code", "SN74HC595N"),
    *("p < 0.001 (95% CI 1.23-4.56)", "12.3 ± 4.5 | 67.8 ± 9.0 | 11.2 ± 3.3", "1,234,567.89", "0.123 0.456 0.789 0.012 0.345", "n = 212 555 0123 456", "mean 123.4 (100.2-155.9), 1200-1300", "+5", "2^+10", "x = a + 12 - 3456 + 7890", "(100) 200-300", "100-200-3000", "5 10 15 20 25 30 35 40", "Table 2: 312 514 1012 2024", "12-34-56-78-90", "score 3-2, 4-1", "1 000 000 000", "$1,299.99 - $2,599.99", "ratio 1:2:3:4", "99.99% of 123456789", "+/- 0.05", "1234-5678-9012"),
    *("phone: see below", "tel aviv 1948", "the telephone was patented in 1876", "mobile 4G and 5G", "fax machine 3000", "电话发明于1876年", "phones 3 and 4", "iPhone 15 Pro", "Call 911", "extension 4021"),
]  # fmt: skip


def labelled() -> Iterator[tuple[str, str | None]]:
    """Texts, and the one kind that stands in each once; None: nothing does."""
    cards = [*CARDS, *(grouped(card) if len(card) == 16 else card for card in CARDS)]
    ibans = [*IBANS, *map(grouped, IBANS)]
    values = {"email": EMAILS, "ip": IPS, "phone": [*PHONES, *CALLED], "card": cards, "iban": ibans, "key": [*KEYS, *ASSIGNED]}
    for kind, some in values.items():
        for value in dict.fromkeys(some):
            yield from ((frame.format(value), kind) for frame in FRAMES)
    for text in NOT_ANY:
        yield from ((frame.format(text), None) for frame in FRAMES)


def measure_labelled() -> None:
    cases = list(labelled())
    texts = [text.encode() for text, _ in cases]
    places = {index: [place.kind for place in some] for index, some in found(texts)}
    right, wanted, fired = Counter[str](), Counter[str](), Counter[str]()
    for index, (text, kind) in enumerate(cases):
        got = places.get(index, [])
        wanted.update([kind] if kind else [])
        fired.update(got)
        right.update([kind] if kind and kind in got else [])
        if got != ([kind] if kind else []):
            print(f"  wanted {kind}, found {got}: {text[:90]!r}")
    print(f"{len(cases)} texts, {sum(wanted.values())} with one identifier, {len(cases) - sum(wanted.values())} without")
    for kind in KINDS:
        print(
            f"  {kind:6} precision {right[kind]}/{fired[kind]} = {right[kind] / fired[kind]:.3f}, recall {right[kind]}/{wanted[kind]} = {right[kind] / wanted[kind]:.3f}"
        )


def first_megabytes(path: Path, megabytes: float) -> list[str]:
    texts, size = [], 0
    for text in documents(path, "text"):
        texts.append(text)
        size += len(text.encode())
        if size > megabytes * 1e6:
            break
    return texts


def show(texts: list[str]) -> None:
    raw = [text.encode() for text in texts]
    for index, places in found(raw):
        for start, end, kind in places:
            before, after = (raw[index][low:high].decode(errors="ignore") for low, high in ((max(0, start - 30), start), (end, end + 20)))
            print(f"  {kind:6} {before!r} >>{raw[index][start:end].decode()}<< {after!r}")


def speeds(texts: list[str], peer: str | None) -> None:
    size = sum(len(text.encode()) for text in texts) / 1e6
    array = pa.array(texts, pa.large_string())
    signal = SIGNALS["privacy"]
    config = signal.config.model_validate({"kind": "privacy"})
    spent: dict[str, list[float]] = {"signal": [], "mask_pii": []}
    signal.compute(config, array.slice(0, 1), None)
    for _ in range(5):
        for name, run in (("signal", lambda: signal.compute(config, array, None)), ("mask_pii", lambda: clean_all(texts, ["mask_pii"]))):
            start = time.process_time()
            run()
            spent[name].append(time.process_time() - start)
    told = ", ".join(f"{name} {size / sorted(seconds)[2]:.0f}" for name, seconds in spent.items())
    if peer:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"".join(orjson.dumps(text) + b"\n" for text in texts))
            file.flush()
            seconds = float(subprocess.run([peer, "-c", PEER, file.name], capture_output=True, text=True, check=True).stdout)
        told += f", datatrove's e-mail and IP {size / seconds:.1f}"
    print(f"  {len(texts)} documents, {size:.1f} MB; MB a second, one thread: {told}")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--megabytes", default=5.0, show_default=True)
@click.option("--peer", type=click.Path(exists=True), help="A Python that has datatrove and orjson.")
def main(files: tuple[Path, ...], megabytes: float, peer: str | None) -> None:
    measure_labelled()
    for path in files:
        print(f"\n{path.parent.name}")
        texts = first_megabytes(path, megabytes)
        show(texts)
        speeds(texts, peer)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
