import json

from django.db import connection, models, transaction


class Order(models.Model):
    status = models.TextField()

    class Meta:
        app_label = "shop"
        db_table = "orders"


def append(topic, event_type, payload):
    """Appends an event in the current transaction. Outside of one it would commit alone."""
    if not connection.in_atomic_block:
        raise transaction.TransactionManagementError("append needs transaction.atomic()")
    with connection.cursor() as cursor:
        cursor.execute("select outbox.append(%s, %s, %s)", [topic, event_type, json.dumps(payload)])


@transaction.atomic
def pay(order_id):
    order = Order.objects.select_for_update().get(pk=order_id)  # this lock orders the topic
    order.status = "paid"
    order.save(update_fields=["status"])
    append(f"order:{order.id}", "ORDER_PAID", {"id": order.id, "status": order.status})
