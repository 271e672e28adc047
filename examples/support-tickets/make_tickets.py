"""Write a table of 600 support tickets as pandas leaves it: an index, a number, a date, a text, a team.

The tickets are made from phrases, seeded, so that the walk-through shows the same numbers on every machine.
"""

import argparse
from pathlib import Path
from random import Random

import pandas

TEAMS = {
    "billing": (
        "I was charged twice for {what}",
        "the invoice for {what} shows a wrong amount",
        "please refund {what}",
        "my card was declined when I paid for {what}",
    ),
    "delivery": (
        "{what} has not arrived yet",
        "the parcel with {what} came to a wrong address",
        "the courier left {what} in the rain",
        "tracking of {what} has not moved for a week",
    ),
    "account": (
        "I cannot log in to see {what}",
        "the password reset for {what} never comes",
        "please change the e-mail that {what} goes to",
        "my account was locked after I ordered {what}",
    ),
}
SHARES = {"billing": 5, "delivery": 3, "account": 2}
THINGS = (
    "order",
    "subscription",
    "lamp",
    "chair",
    "phone case",
    "coffee machine",
    "winter coat",
    "gift card",
)
BEGINNINGS = ("Hello,", "Hi team,", "Good morning,", "", "Urgent:", "Third mail:")
ENDS = ("Please help.", "Thanks!", "", "This is the second time.", "Kind regards, {name}", "What can I do?")
NAMES = ("Ada", "Bela", "Chen", "Dina", "Emre", "Fatou")


def tickets(rows: int = 600, seed: int = 0) -> pandas.DataFrame:
    """Return the table; a quarter of the texts mentions another team's words too, as people do."""
    random = Random(seed)
    table = []
    for row in range(rows):
        (team,) = random.choices(list(SHARES), list(SHARES.values()))
        what = f"my {random.choice(THINGS)} {random.randrange(1000, 9999)}"
        said = random.choice(TEAMS[team]).format(what=what)
        if random.random() < 0.25:
            other = random.choice([name for name in TEAMS if name != team])
            said += f", and I know that {random.choice(TEAMS[other]).format(what='another one')}"
        parts = (random.choice(BEGINNINGS), said + ".", random.choice(ENDS).format(name=random.choice(NAMES)))
        day = pandas.Timestamp("2024-01-01") + pandas.Timedelta(days=row // 4)
        table.append((random.randrange(10**6), day.date(), " ".join(filter(None, parts)), team))
    return pandas.DataFrame(table, columns=pandas.Index(["ticket_id", "received", "text", "team"]))


def main() -> None:
    """Write `tickets.csv`, and `new.csv` with tickets that nobody sorted yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="receives the files (.)")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    sorted_by_people = tickets()
    sorted_by_people.loc[[41, 302], "team"] = None  # two were never sorted
    sorted_by_people.to_csv(folder / "tickets.csv")
    tickets(rows=20, seed=1).drop(columns="team").to_csv(folder / "new.csv")


if __name__ == "__main__":
    main()
