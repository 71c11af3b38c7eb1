"""Runs a recipe for Python: recipes.py NAME ORDER_ID. With ABORT set, its transaction fails at its end."""

import os
import sys

import psycopg

name, order_id = sys.argv[1], int(sys.argv[2])
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../recipes/python"))
address = psycopg.conninfo.conninfo_to_dict(os.environ["DATABASE_URL"])


class Aborted(Exception):
    """The failure of what comes after the append."""


def sqlalchemy():
    import sqlalchemy as sa
    import sqlalchemy_orders as recipe

    url = os.environ["DATABASE_URL"].replace("postgres://", "postgresql+psycopg://")
    engine = sa.create_engine(url)
    if "ABORT" in os.environ:
        sa.event.listen(engine, "commit", abort)
    recipe.pay(engine, order_id)


def django():
    from django.conf import settings

    keys = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    database = {key: address[of] for key, of in keys.items()}
    settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **database}})
    import django as framework

    framework.setup()
    import django_orders as recipe
    from django.db import transaction

    try:
        recipe.append(f"order:{order_id}", "ORDER_PAID", {})
    except transaction.TransactionManagementError:
        pass
    else:
        raise AssertionError("an append outside of a transaction is refused")
    with transaction.atomic():
        recipe.pay(order_id)
        if "ABORT" in os.environ:
            abort()


def abort(*_):
    raise Aborted


try:
    {"sqlalchemy": sqlalchemy, "django": django}[name]()
except Aborted:
    print("rolled back")
