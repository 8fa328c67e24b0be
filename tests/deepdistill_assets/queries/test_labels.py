# Texts in other scripts are the subject here.
# ruff: noqa: RUF001
import polars as pl
import pytest

from deepdistill_assets.queries import labels
from deepdistill_assets.queries.labels import detect_language, detect_languages

ENGLISH = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May?",
    "Let $f$ be a function such that $f(x + y) = f(x) + f(y)$ for all real numbers. Find the value of $f(2)$ if it is "
    "known that $f(1) = 3$ and that the function has no other property than these two.",
    "Write a function that takes a list of integers and returns the largest sum of a contiguous part. Explain which "
    "steps your program takes, and how long each of them is.",
]
OTHERS = {
    "de": "Anna kauft auf dem Markt drei Äpfel und fünf Birnen, die zusammen acht Euro kosten. Wie viel muss sie für "
    "sechs Äpfel und zehn Birnen bezahlen, wenn der Preis gleich bleibt?",
    "fr": "Un train quitte la gare à midi et roule à une vitesse constante de quatre-vingts kilomètres par heure. À "
    "quelle heure arrivera-t-il dans la ville qui se trouve à deux cents kilomètres ?",
    "es": "Un comerciante compra doce cajas de manzanas y vende la mitad en el mercado por la mañana. ¿Cuántas cajas "
    "le quedan al final del día si vende tres más por la tarde?",
    "nl": "Een boer heeft honderd appels of peren in zijn schuur en verkoopt de helft daarvan op de markt. Hoeveel van "
    "de vruchten heeft hij aan het einde van de dag nog over?",
    "ru": "Поезд вышел из города в полдень и шёл с постоянной скоростью восемьдесят километров в час. Сколько времени "
    "он будет в пути до станции, если до неё двести километров?",
    "zh": "小明今天在市场买了十二个苹果，每个三元。他又买了五支铅笔。一共花了多少钱？",
}


def detected(texts: list[str], declared: str = "en") -> list[str]:
    return detect_languages(pl.Series(texts), pl.Series([declared] * len(texts))).to_list()


def test_plain_english_needs_no_detector_and_the_detector_agrees(monkeypatch):
    assert [detect_language(text, "de") for text in ENGLISH] == ["en"] * 3
    monkeypatch.setattr(labels, "detect_language", lambda text, declared: pytest.fail("asked"))
    assert detected(ENGLISH, "de") == ["en"] * 3


def test_other_languages_are_not_taken_for_english():
    assert detected(list(OTHERS.values())) == list(OTHERS)


def test_short_texts_take_the_declared_language_and_order_stays():
    texts = ["2 + 2?", OTHERS["zh"], ENGLISH[0], "", None, OTHERS["fr"]]
    declared = pl.Series(["de", "en", "de", "fr", None, "en"])
    assert detect_languages(pl.Series(texts), declared).to_list() == ["de", "zh", "en", "fr", "en", "fr"]
