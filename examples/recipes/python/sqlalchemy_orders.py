from sqlalchemy import JSON, func, literal, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]


def append(session, topic, event_type, payload):
    """Appends an event in the session's transaction."""
    session.execute(select(func.outbox.append(topic, event_type, literal(payload, JSON))))


def pay(engine, order_id):
    with Session(engine) as session, session.begin():
        order = session.get_one(Order, order_id, with_for_update=True)  # this lock orders the topic
        order.status = "paid"
        append(session, f"order:{order.id}", "ORDER_PAID", {"id": order.id, "status": order.status})
