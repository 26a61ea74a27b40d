"""How often a sentence is counted for the wrong language, by its length in letters.

    python benchmarks/language_detection.py [--english FILE ...]

Where languages share a script, `ponder.text.languages` asks a detector about whole sentences. Two things can go wrong:
a sentence in the problem's language is counted as foreign (a false alarm, which costs a good rollout its reward), or a
foreign one is counted as the problem's (a miss). Measured on the sentences below, thinking aloud about mathematics, and
on each of their beginnings, word by word; with `--english`, the false alarms also on the `problem` and `solution`
columns of such JSONL files (.gz too). Last, the time that counting takes.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from measure import save, table

from ponder.text.languages import CERTAINTY, MIN_LETTERS, consistency, count_words

SENTENCES = {
    "en": (
        "Let us first find out how many apples are left in the basket after the second day",
        "We multiply both sides by the common denominator and move everything to the left",
        "Wait, this cannot be right, since the sum of the angles would be too large",
        "So the remainder must be either one or two, and we check both cases",
        "There are four ways to choose the first card and three ways to choose the next",
        "Hmm, maybe there is a shorter way if I look at the last digit only",
        "The train needs twice as long because its speed is only half of that of the car",
        "Suppose that the larger number is prime, then the smaller one divides it",
        "Now substitute this value back into the original equation to verify it",
        "Therefore the area of the triangle equals half the product of base and height",
        "She pays for three tickets, so each of them costs the same amount of money",
        "Counting the squares again gives the same result as before, which is a good sign",
    ),
    "fr": (
        "Cherchons d'abord combien de pommes restent dans le panier après le deuxième jour",
        "On multiplie les deux membres par le dénominateur commun et on passe tout à gauche",
        "Attends, cela ne peut pas être juste, car la somme des angles serait trop grande",
        "Donc le reste vaut soit un soit deux, et nous vérifions les deux cas",
        "Il y a quatre façons de choisir la première carte et trois pour la suivante",
        "Peut-être existe-t-il un chemin plus court si je regarde le dernier chiffre",
        "Le train met deux fois plus de temps parce que sa vitesse est la moitié de celle de la voiture",
        "Supposons que le plus grand nombre soit premier, alors le plus petit le divise",
        "Remplaçons maintenant cette valeur dans l'équation de départ pour la vérifier",
        "L'aire du triangle est donc la moitié du produit de la base et de la hauteur",
        "Elle paie trois billets, et chacun coûte par conséquent la même somme",
        "En comptant encore une fois les carrés, on trouve le même résultat, ce qui est bon signe",
    ),
    "de": (
        "Zuerst suchen wir, wie viele Äpfel nach dem zweiten Tag noch im Korb liegen",
        "Wir multiplizieren beide Seiten mit dem Hauptnenner und bringen alles nach links",
        "Moment, das kann nicht stimmen, denn die Summe der Winkel wäre dann zu groß",
        "Also ist der Rest entweder eins oder zwei, und wir prüfen beide Fälle",
        "Für die erste Karte gibt es vier Möglichkeiten und für die nächste noch drei",
        "Vielleicht geht es kürzer, wenn ich nur auf die letzte Ziffer schaue",
        "Der Zug braucht doppelt so lange, weil er nur halb so schnell fährt wie das Auto",
        "Angenommen, die größere Zahl ist prim, dann wird sie von der kleineren geteilt",
        "Nun setzen wir diesen Wert in die ursprüngliche Gleichung ein und prüfen ihn",
        "Die Fläche des Dreiecks ist daher die Hälfte von Grundseite mal Höhe",
        "Sie bezahlt drei Karten, also kostet jede von ihnen gleich viel Geld",
        "Zähle ich die Quadrate noch einmal, kommt dasselbe heraus, und das ist ein gutes Zeichen",
    ),
    "es": (
        "Primero averigüemos cuántas manzanas quedan en la cesta después del segundo día",
        "Multiplicamos ambos lados por el denominador común y pasamos todo a la izquierda",
        "Espera, esto no puede ser correcto, porque la suma de los ángulos sería demasiado grande",
        "Entonces el resto tiene que ser uno o dos, y comprobamos los dos casos",
        "Hay cuatro maneras de elegir la primera carta y tres de elegir la siguiente",
        "Quizás haya un camino más corto si miro solamente la última cifra",
        "El tren tarda el doble porque su velocidad es la mitad de la del coche",
        "Supongamos que el número mayor es primo, entonces el menor lo divide",
        "Ahora ponemos este valor en la ecuación original para comprobarlo",
        "Por lo tanto el área del triángulo es la mitad de la base por la altura",
        "Ella paga tres entradas, así que cada una cuesta la misma cantidad de dinero",
        "Si cuento otra vez los cuadrados sale lo mismo que antes, y eso es buena señal",
    ),
    "it": (
        "Cerchiamo prima quante mele restano nel cesto dopo il secondo giorno",
        "Moltiplichiamo entrambi i membri per il denominatore comune e portiamo tutto a sinistra",
        "Aspetta, questo non può essere giusto, perché la somma degli angoli sarebbe troppo grande",
        "Quindi il resto deve essere uno oppure due, e controlliamo tutti e due i casi",
        "Ci sono quattro modi di scegliere la prima carta e tre di scegliere la successiva",
        "Forse esiste una strada più breve se guardo soltanto l'ultima cifra",
        "Il treno impiega il doppio del tempo perché va alla metà della velocità della macchina",
        "Supponiamo che il numero più grande sia primo, allora il più piccolo lo divide",
        "Adesso mettiamo questo valore nell'equazione di partenza per verificarlo",
        "L'area del triangolo è dunque la metà del prodotto della base per l'altezza",
        "Lei paga tre biglietti, perciò ognuno costa la stessa somma di denaro",
        "Contando di nuovo i quadrati viene lo stesso risultato, ed è un buon segno",
    ),
    "pt": (
        "Primeiro vamos descobrir quantas maçãs ficam no cesto depois do segundo dia",
        "Multiplicamos os dois lados pelo denominador comum e passamos tudo para a esquerda",
        "Espere, isto não pode estar certo, porque a soma dos ângulos seria grande demais",
        "Logo o resto tem de ser um ou dois, e verificamos os dois casos",
        "Há quatro maneiras de escolher a primeira carta e três de escolher a seguinte",
        "Talvez haja um caminho mais curto se eu olhar apenas para o último algarismo",
        "O trem demora o dobro do tempo porque a sua velocidade é a metade da do carro",
        "Suponhamos que o número maior seja primo, então o menor o divide",
        "Agora colocamos este valor na equação original para o verificar",
        "Portanto a área do triângulo é a metade do produto da base pela altura",
        "Ela paga três bilhetes, de modo que cada um custa a mesma quantia",
        "Contando outra vez os quadrados obtemos o mesmo resultado, e isso é um bom sinal",
    ),
    "ru": (
        "Сначала найдём, сколько яблок осталось в корзине после второго дня",
        "Умножим обе части на общий знаменатель и перенесём всё влево",
        "Подожди, это не может быть верно, ведь сумма углов была бы слишком большой",
        "Значит, остаток равен одному или двум, и мы проверим оба случая",
        "Первую карту можно выбрать четырьмя способами, а следующую тремя",
        "Может быть, есть более короткий путь, если смотреть только на последнюю цифру",
        "Поезду нужно вдвое больше времени, потому что он едет вдвое медленнее машины",
        "Предположим, что большее число простое, тогда меньшее его делит",
        "Теперь подставим это значение в исходное уравнение, чтобы проверить",
        "Поэтому площадь треугольника равна половине произведения основания на высоту",
        "Она платит за три билета, так что каждый из них стоит одинаково",
        "Если снова сосчитать квадраты, получится то же самое, и это хороший знак",
    ),
    "uk": (
        "Спочатку знайдемо, скільки яблук залишилося в кошику після другого дня",
        "Помножимо обидві частини на спільний знаменник і перенесемо все ліворуч",
        "Зачекай, це не може бути правильно, адже сума кутів була б завелика",
        "Отже, остача дорівнює одиниці або двом, і ми перевіримо обидва випадки",
        "Першу карту можна вибрати чотирма способами, а наступну трьома",
        "Можливо, є коротший шлях, якщо дивитися лише на останню цифру",
        "Потягу потрібно вдвічі більше часу, бо він їде вдвічі повільніше за машину",
        "Припустимо, що більше число просте, тоді менше його ділить",
        "Тепер підставимо це значення у початкове рівняння, щоб перевірити",
        "Тому площа трикутника дорівнює половині добутку основи на висоту",
        "Вона платить за три квитки, тож кожен із них коштує однаково",
        "Якщо знову порахувати квадрати, вийде те саме, і це добрий знак",
    ),
}
SCRIPT_MATES = (("en", "fr", "de", "es", "it", "pt"), ("ru", "uk"))
BANDS = (10, 15, 20, 25, 30, 40, 50, 60)
"""Lower ends of the bands of length, in letters."""


@dataclass
class Errors:
    """Of the sentences of one band of length."""

    own: list[bool] = field(default_factory=list)
    """A sentence in the problem's language: is a word of it counted as foreign?"""
    foreign: list[bool] = field(default_factory=list)
    """A sentence in another language of the same script: is a word of it counted as the problem's?"""


def beginnings(sentence: str) -> Iterator[str]:
    """The sentence cut after its first word, its second, ..., and the whole."""
    words = sentence.split()
    return (" ".join(words[:count]) for count in range(1, len(words) + 1))


def band(text: str) -> int | None:
    """The band of length that a text falls in; None below the first."""
    letters = sum(map(str.isalpha, text))
    return max((low for low in BANDS if low <= letters), default=None)


def measured() -> dict[int, Errors]:
    """Both kinds of error on the sentences above, by band."""
    errors = {low: Errors() for low in BANDS}
    for mates in SCRIPT_MATES:
        for language, target in itertools.product(mates, repeat=2):
            for text in itertools.chain.from_iterable(map(beginnings, SENTENCES[language])):
                low, counts = band(text), count_words(text, target)
                if low is None or not counts.all:
                    continue
                if language == target:
                    errors[low].own.append(counts.target < counts.all)
                else:
                    errors[low].foreign.append(counts.target > 0)
    return errors


def english_sentences(path: Path) -> Iterator[str]:
    """Sentences of the problems and solutions of a JSONL file; formulas and all."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as lines:
        for row in map(json.loads, lines):
            for column in ("problem", "solution"):
                yield from re.split(r"(?<=[.!?])\s+|\n", row.get(column, ""))


def false_alarms(paths: Sequence[Path]) -> tuple[int, int]:
    """(sentences, how many of them are not counted as English through and through)."""
    shares = [consistency(text, "en") for path in paths for text in english_sentences(path)]
    worded = [share for share in shares if share is not None]
    return len(worded), sum(share < 1 for share in worded)


def microseconds(texts: Sequence[str], target: str) -> float:
    """CPU time to count the words of one text."""
    started = time.process_time()
    for text in texts:
        count_words(text, target)
    return 1e6 * (time.process_time() - started) / len(texts)


def trace(language: str, number: int) -> str:
    """About 1,000 characters of thinking, unlike those of other numbers."""
    rng = random.Random(number)
    sentences = SENTENCES[language]
    said: list[str] = []
    while sum(map(len, said)) < 1000:
        words = rng.choice(sentences).split()
        said.append(" ".join(words[rng.randrange(3) :]) + f" {rng.choice(words)}, so x = {rng.randrange(1000)}.")
    return " ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--english", nargs="*", default=[], metavar="FILE", help="JSONL files of English problems")
    parser.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    options = parser.parse_args()
    errors = measured()
    rows = [
        [f"{low}+", str(len(e.own)), f"{fmean(e.own):.3f}", str(len(e.foreign)), f"{fmean(e.foreign):.3f}"]
        for low, e in errors.items()
    ]
    print(f"A sentence is judged from {MIN_LETTERS} letters on, where the detector is {CERTAINTY:.0%} sure.\n")
    print(table(["letters", "own", "false alarms", "foreign", "misses"], rows))
    if options.english:
        count, wrong = false_alarms([Path(name) for name in options.english])
        print(f"\nEnglish sentences of the files: {count}, of which counted as foreign: {wrong}")
    costs = {}
    texts = [trace("en", number) for number in range(200)]
    for name, target in (("the script decides (zh)", "zh"), ("the detector decides (en)", "en")):
        count_words(texts[0], target)  # loads what is loaded once
        costs[name] = microseconds(texts[1:], target)
    print(
        "\nmicroseconds of CPU for 1,000 characters:", ", ".join(f"{name} {cost:.0f}" for name, cost in costs.items())
    )
    rates = {low: {"false_alarms": fmean(e.own), "misses": fmean(e.foreign)} for low, e in errors.items()}
    save("language_detection", options.json, options, {"errors": rates, "microseconds": costs})


if __name__ == "__main__":
    main()
