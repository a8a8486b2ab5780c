"""Tasks about small invented reports: answering a question by a span, and checking a statement.

Sources report journeys, targets purchases: other sentences, other names, other questions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mpt_jax.tasks.embedded.materials import cldr_names
from mpt_jax.tasks.embedded.splitting import SOURCE_LIMITS, TARGET_LIMITS, balanced, digest, within


@dataclass(frozen=True)
class Domain:
    """What reports are made of.

    reports: sentences with {slot}s. questions: slot -> wordings. statements: slot -> wordings with {slot}s.
    fillers: slot -> possible texts. split_slots: slots whose fillers are divided among the splits.
    """

    name: str
    target: bool
    reports: tuple[str, ...]
    questions: Mapping[str, tuple[str, ...]]
    statements: Mapping[str, tuple[str, ...]]
    fillers: Mapping[str, tuple[str, ...]]
    split_slots: tuple[str, ...]


FIRST_NAMES = (
    "Adam Alice Anna Bella Boris Carla Carlos Clara Daniel David Diana Elena Emma Eric Eva Felix"
    " Frank Grace Hanna Harry Helen Henry Ida Ivan Jack Jane Jonas Julia Karen Karl Kate Laura Leo"
    " Linda Lucas Lucy Maria Mark Martha Martin Mary Max Nina Nora Olga Oliver Oscar Paul Paula Peter"
    " Robert Rosa Ruth Sam Sara Simon Sofia Susan Thomas Tina Victor Vera Walter William"
).split()
SURNAMES = (
    "Adams Baker Barnes Bell Bennett Brooks Butler Carter Clark Cole Collins Cook Cooper Cox Davis"
    " Dixon Evans Fisher Ford Foster Fox Gibson Gordon Hall Harris Hill Holmes Howard Hughes Hunt"
    " Jackson James Jenkins Johnson Jones Kelly King Knight Lane Lee Lewis Lloyd Marshall Mason"
    " Miller Mills Moore Morgan Morris Murphy Murray Nelson Owen Palmer Parker Pearson Perry Porter"
    " Powell Price Reed Reynolds Richards Roberts Robinson Rogers Russell Scott Shaw Simpson Smith"
    " Spencer Stevens Stone Taylor Turner Walker Walsh Ward Watson Webb Wells West Wood Wright Young"
).split()
NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
COLOURS = "red blue green yellow black white brown grey pink purple orange golden".split()
VEHICLES = "train bus car ship plane bicycle ferry taxi motorcycle truck".split()
COMPANIONS = "brother sister father mother nephew niece cousin neighbour teacher friend boss".split()
GOODS = (
    "lamps chairs tables books plates cups shirts hats coats shoes gloves scarves bags boxes bottles"
    " candles carpets clocks mirrors pillows blankets towels knives spoons pans umbrellas pencils"
    " notebooks toys balls guitars violins drums cameras radios phones bicycles tents ropes ladders"
    " hammers buckets brushes baskets curtains vases paintings"
).split()


def journeys() -> Domain:
    return Domain(
        name="journey",
        target=False,
        reports=(
            "On {day} {who} went from {origin} to {goal} by {vehicle} with a {companion}.",
            "{who} left {origin} for {goal} on {day}. The {vehicle} was late, but the {companion} waited.",
            "{who} and a {companion} took a {vehicle} to {goal} on {day}. They came from {origin}.",
            "After a week in {origin}, {who} travelled to {goal} by {vehicle}. A {companion} came on {day}.",
            "The {vehicle} from {origin} reached {goal} on {day}. {who} and a {companion} were tired.",
            "{who} visited a {companion} in {goal} on {day}. The {vehicle} had left {origin} early.",
        ),
        questions={
            "who": ("who travelled?", "what is the name of the traveller?", "who made the journey?"),
            "origin": ("where did the journey begin?", "which place was left?", "where did they come from?"),
            "goal": ("where did the journey end?", "which place was reached?", "where did they go to?"),
            "day": ("on which day was it?", "when was it?", "what day is named?"),
            "vehicle": ("how did they travel?", "what did they travel in?", "which vehicle was used?"),
            "companion": ("who else is named?", "who was the other person?", "which other person was there?"),
        },
        statements={
            "who": ("{who} was travelling.", "the traveller was {who}."),
            "origin": ("the journey began in {origin}.", "they came from {origin}."),
            "goal": ("the journey ended in {goal}.", "they went to {goal}."),
            "day": ("it was a {day}.", "it happened on {day}."),
            "vehicle": ("they used a {vehicle}.", "they travelled by {vehicle}."),
            "companion": ("a {companion} was there.", "the other person was a {companion}."),
        },
        fillers={
            "who": tuple(FIRST_NAMES),
            "origin": cldr_names()["city"],
            "goal": cldr_names()["city"],
            "day": tuple(DAYS),
            "vehicle": tuple(VEHICLES),
            "companion": tuple(COMPANIONS),
        },
        split_slots=("who", "origin", "goal"),
    )


def purchases() -> Domain:
    return Domain(
        name="purchase",
        target=True,
        reports=(
            "In {month} {buyer} bought {count} {colour} {goods} at a market in {country}.",
            "{buyer} runs a shop in {country}. In {month} the shop ordered {count} {goods}, all {colour}.",
            "A parcel from {country} came in {month}: {count} {colour} {goods} for {buyer}.",
            "{count} {goods} were sold to {buyer} in {month}. They were {colour} and came from {country}.",
            "When the {colour} {goods} from {country} became cheap in {month}, {buyer} took {count} of them.",
        ),
        questions={
            "buyer": ("who is the customer?", "who got the things?"),
            "goods": ("what was sold?", "what kind of things are they?"),
            "colour": ("what colour are they?", "which colour do they have?"),
            "count": ("how many pieces are there?", "how many are they?"),
            "month": ("in which month was it?", "what time of the year was it?"),
            "country": ("which country is named?", "in what country was it?"),
        },
        statements={
            "buyer": ("the customer is {buyer}.", "{buyer} has them now."),
            "goods": ("these things are {goods}.", "somebody sold {goods}."),
            "colour": ("the things are {colour}.", "their colour is {colour}."),
            "count": ("there are {count} pieces.", "it is about {count} of them."),
            "month": ("this was in {month}.", "the month was {month}."),
            "country": ("the country is {country}.", "this has to do with {country}."),
        },
        fillers={
            "buyer": tuple(f"{title} {name}" for name in SURNAMES for title in ("Mr", "Mrs")),
            "goods": tuple(GOODS),
            "colour": tuple(COLOURS),
            "count": tuple(NUMBERS),
            "month": tuple(MONTHS),
            "country": tuple(name for name in cldr_names()["country"] if len(name.split()) < 3),
        },
        split_slots=("buyer", "country"),
    )


def split_fillers(domain: Domain, split: str) -> dict[str, Sequence[str]]:
    """slot -> the texts that reports of this split may use."""
    return {
        slot: within(texts, split, domain.target) if slot in domain.split_slots else texts
        for slot, texts in domain.fillers.items()
    }


def _choice(options: Sequence[str], *salt: object) -> str:
    return options[digest(*salt) % len(options)]


def _facts(domain: Domain, split: str, task: str) -> Iterator[tuple[int, dict[str, str], str]]:
    """(number, slot -> text, report) as often as the split may have rows; all texts of a report differ."""
    fillers = split_fillers(domain, split)
    number = 0
    for _ in range((TARGET_LIMITS if domain.target else SOURCE_LIMITS)[split]):
        facts: dict[str, str] = {}
        while len(set(facts.values())) < len(fillers):
            number += 1
            facts = {slot: _choice(texts, domain.name, task, number, slot) for slot, texts in fillers.items()}
        yield number, facts, sentence_case(_choice(domain.reports, domain.name, task, number).format(**facts))


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def _questions(domain: Domain, split: str) -> Iterator[dict]:
    slots = sorted(domain.questions)
    for at, (number, facts, report) in enumerate(_facts(domain, split, "question")):
        slot = slots[at % len(slots)]
        question = _choice(domain.questions[slot], "wording", number)
        answer = facts[slot] if facts[slot] in report else sentence_case(facts[slot])
        yield {"question": question, "context": report, "answer": answer}


def _checks(domain: Domain, split: str) -> Iterator[dict]:
    """Half of the statements are false: their slot is filled with another text of the same kind."""
    fillers = split_fillers(domain, split)
    slots = sorted(domain.statements)
    rows = []
    for at, (number, facts, report) in enumerate(_facts(domain, split, "check")):
        slot, true = slots[at // 2 % len(slots)], at % 2 == 0
        others = [text for text in fillers[slot] if text not in facts.values()]
        said = facts if true else {**facts, slot: _choice(others, "other", number)}
        statement = _choice(domain.statements[slot], "wording", number).format(**said)
        rows.append({"context": report, "statement": statement, "label": "yes" if true else "no"})
    yield from balanced(rows, split, domain.target)


def journey_question(split: str) -> Iterator[dict]:
    """A question about a report of a journey -> the words of the report that answer it."""
    yield from _questions(journeys(), split)


def journey_check(split: str) -> Iterator[dict]:
    """A report of a journey and a statement -> whether the report says so."""
    yield from _checks(journeys(), split)


def purchase_question(split: str) -> Iterator[dict]:
    """A question about a report of a purchase -> the words of the report that answer it."""
    yield from _questions(purchases(), split)


def purchase_check(split: str) -> Iterator[dict]:
    """A report of a purchase and a statement -> whether the report says so."""
    yield from _checks(purchases(), split)
