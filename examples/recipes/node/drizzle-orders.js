import { eq, sql } from "drizzle-orm";
import { integer, pgTable, text } from "drizzle-orm/pg-core";

export const orders = pgTable("orders", { id: integer().primaryKey(), status: text().notNull() });

/** Appends an event in the transaction `tx`. */
export const append = (tx, topic, type, payload) =>
  tx.execute(sql`select outbox.append(${topic}, ${type}, ${JSON.stringify(payload)})`);

export const pay = (db, id) => db.transaction(async (tx) => {
  const paid = tx.update(orders).set({ status: "paid" }).where(eq(orders.id, id)).returning();
  const [order] = await paid; // its row lock orders the topic
  if (!order) throw new Error(`there is no order ${id}`);
  await append(tx, `order:${id}`, "ORDER_PAID", order);
});
