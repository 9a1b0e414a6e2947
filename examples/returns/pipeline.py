"""Will this order line be taken back within 30 days? Asked of every line as it is ordered."""

import math
from datetime import datetime
from typing import Annotated

from msgspec import Meta
from river import linear_model, optim, preprocessing

import headrace as hr

PRIOR = 0.015
Positive = Annotated[float, Meta(gt=0)]


class OrderLine(hr.Event, topic="orders", key="customer", time="at"):
    invoice: str
    customer: str
    item: str
    description: str
    quantity: Annotated[int, Meta(gt=0)]
    price: Positive
    country: str
    at: datetime


class Return(hr.Event, topic="returns", key="customer", time="at"):
    invoice: str
    customer: str
    item: str
    description: str
    quantity: Annotated[int, Meta(lt=0)]
    price: Positive
    country: str
    at: datetime


taken_back = hr.Outcome(
    Return, of=OrderLine, match=["customer", "item"], quantity="quantity", within="30d", prior=PRIOR
)

value = hr.log(hr.maximum(hr.col.price * abs(hr.col.quantity), 0.01))
USUAL = 2.5  # the log value of a usual line, where nothing is known yet


def odds(returned: hr.Expression, lines: hr.Expression) -> hr.Expression:
    """How many times likelier than usual: a rate drawn towards the prior, over the prior, as a logarithm."""
    return hr.log((returned + 40 * PRIOR) / (lines + 40) / PRIOR)


class Customer(hr.Features, of=OrderLine, by="customer"):
    customer_odds = odds(hr.count(of=taken_back), hr.count())
    value_against_cancelled = value - (hr.sum(value, of=Return) + 2 * USUAL) / (hr.count(of=Return) + 2)
    value_deviation = hr.fill(hr.sqrt(hr.variance(value)), 0.0)
    _rate = (hr.count(of=taken_back) + 50 * PRIOR) / (hr.count() + 50)


class Item(hr.Features, of=OrderLine, by="item"):
    _lines = hr.count()
    item_cancels = odds(hr.count(of=Return), _lines)
    item_odds_recent = odds(hr.decayed(half_life="30d", of=taken_back), hr.decayed(half_life="30d"))
    item_lines = hr.log1p(_lines)
    value_against_returned = value - (hr.sum(value, of=taken_back) + 2 * USUAL) / (hr.count(of=taken_back) + 2)
    price_against_usual = hr.log(hr.col.price) - hr.mean(hr.log(hr.col.price))
    _rate = (hr.count(of=taken_back) + 50 * PRIOR) / (_lines + 50)


class ItemQuantity(hr.Features, of=OrderLine, by=("item", "quantity"), publish=False):
    item_quantity_odds = odds(hr.count(of=taken_back), hr.count())


class CustomerQuantity(hr.Features, of=OrderLine, by=("customer", "quantity"), publish=False):
    customer_quantity_odds = odds(hr.count(of=taken_back), hr.count())


class ItemCountry(hr.Features, of=OrderLine, by=("item", "country"), publish=False):
    item_country_odds = odds(hr.count(of=taken_back), hr.count())


class CustomerItem(hr.Features, of=OrderLine, by=("customer", "item"), publish=False):
    customer_item_odds = odds(hr.count(of=taken_back), hr.count())


returns = hr.Model(
    "returns",
    on=OrderLine,
    features=[Customer, Item, ItemQuantity, CustomerQuantity, ItemCountry, CustomerItem],
    learner=preprocessing.StandardScaler()
    | linear_model.LogisticRegression(
        # eps=1: or the outcomes of the first hours alone would set the weights.
        optimizer=optim.AdaGrad(0.015, eps=1.0),
        intercept_init=math.log(PRIOR / (1 - PRIOR)),
        intercept_lr=0.001,
    ),
    outcome=taken_back,
    baselines={"item": Item._rate, "customer": Customer._rate},
    # The lines of an invoice come together, are much alike and are returned together; detectors take what they see for
    # independent, so they see means of several invoices. Scores: an alarm where their mean moves by more than half a
    # percentage point; the others: where their distribution does, by a test that fails once in 10,000 means.
    watch=[
        hr.drift.PageHinkley("score", delta=0.005, threshold=0.05, mean_of=500),
        hr.drift.KSWIN("log_loss", alpha=1e-4, mean_of=100),
        hr.drift.KSWIN("value_deviation", alpha=1e-4, mean_of=100),
    ],
)

app = hr.App("returns", models=[returns])
