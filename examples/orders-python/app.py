"""Orders, in Flask: each customer watches their own orders change, live."""

import json
import os
import re
import time

import jwt
from flask import Flask, abort, request, send_file, session
from psycopg.errors import CheckViolation
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from werkzeug.exceptions import HTTPException

SSE_URL = os.environ.get("SSE_URL", "http://127.0.0.1:8081")
JWT_SECRET = os.environ["AFTERCOMMIT_JWT_SECRET"]  # the same as the SSE server's
TOKEN_SECONDS = int(os.environ.get("TOKEN_SECONDS", "900"))

SCHEMA = """
create table if not exists stock (item text primary key, amount int not null check (amount >= 0));
create table if not exists orders (
  id bigint generated always as identity primary key, customer text not null, item text not null,
  status text not null default 'placed', version int not null default 1);
insert into stock values ('book', 1000), ('violin', 1) on conflict do nothing;
"""
COLUMNS = "id, item, status, version"
STEPS = {"pay": ("placed", "paid"), "ship": ("paid", "shipped")}  # the status before, and after

app = Flask(__name__)
app.secret_key = os.environ["SESSION_SECRET"]
pool = ConnectionPool(os.environ["DATABASE_URL"], kwargs={"row_factory": dict_row}, open=True)
with pool.connection() as db:
    db.execute(SCHEMA)


def customer():
    """The customer who is signed in."""
    return session.get("customer") or abort(401, "sign in first")


def topic():
    """The topic that carries all orders of this customer, and nobody else's."""
    return f"customer:{customer()}"


def append(db, event_type, order):
    """Appends the order as it is now: the event commits with the change, or not at all."""
    db.execute("select outbox.append(%s, %s, %s::json)", (topic(), event_type, json.dumps(order)))


@app.errorhandler(HTTPException)
def say(error):
    return error.description, error.code


@app.get("/")
def page():
    return send_file("index.html")


@app.post("/sign-in")
def sign_in():
    """Believes the name: put your own sign-in here."""
    name = request.json["customer"]
    if not re.fullmatch("[a-z0-9-]{1,40}", name):
        abort(400, "a name has 1 to 40 characters of a-z 0-9 -")
    session["customer"] = name
    return {"customer": name}


@app.post("/token")
def token():
    """A token that opens this customer's topic, for a short time."""
    now = int(time.time())
    claims = {"sub": customer(), "iat": now, "exp": now + TOKEN_SECONDS, "subscribe": [topic()]}
    return {"token": jwt.encode(claims, JWT_SECRET, "HS256"), "topic": topic(), "server": SSE_URL}


@app.get("/orders")
def orders():
    """The orders, and which events they hold: one statement reads both."""
    with pool.connection() as db:
        sql = (f'select outbox.resume_token() as "resumeToken", coalesce((select json_agg(o) from ('
               f"select {COLUMNS} from orders where customer = %s order by id) o), '[]') as orders")
        return db.execute(sql, (customer(),)).fetchone()


@app.post("/orders")
def place():
    item = request.json["item"]
    try:
        with pool.connection() as db:  # one transaction: it commits at the end, and rolls back on an error
            db.execute("select outbox.lock_topic(%s)", (topic(),))  # orders the customer's events
            sql = f"insert into orders (customer, item) values (%s, %s) returning {COLUMNS}"
            order = db.execute(sql, (customer(), item)).fetchone()
            append(db, "ORDER_PLACED", order)
            db.execute("update stock set amount = amount - 1 where item = %s", (item,))
    except CheckViolation:
        abort(409, f"{item} is sold out")  # rolled back: no order, and no event
    return order, 201


@app.post("/orders/<int:order_id>/<step>")
def move(order_id, step):
    before, after = STEPS.get(step) or abort(404)
    with pool.connection() as db:
        db.execute("select outbox.lock_topic(%s)", (topic(),))
        sql = (f"update orders set status = %s, version = version + 1 "
               f"where id = %s and customer = %s and status = %s returning {COLUMNS}")
        order = db.execute(sql, (after, order_id, customer(), before)).fetchone()
        if not order:
            abort(409, f"you have no order {order_id} that is {before}")
        append(db, f"ORDER_{after.upper()}", order)
    return order
