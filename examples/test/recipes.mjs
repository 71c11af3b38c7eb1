// Runs a recipe for Node: recipes.mjs NAME ORDER_ID. With ABORT set, its transaction fails at its end.

import pg from "pg";

const [name, id] = [process.argv[2], Number(process.argv[3])];
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });

/** The failure of what comes after the append. */
class Aborted extends Error {}

const RECIPES = {
  async drizzle() {
    const { drizzle } = await import("drizzle-orm/node-postgres");
    const { pay } = await import("../recipes/node/drizzle-orders.js");
    await drizzle(pool).transaction(async (tx) => {
      await pay(tx, id);
      if (process.env.ABORT) throw new Aborted();
    });
  },
};

try {
  await RECIPES[name]();
} catch (error) {
  if (!(error instanceof Aborted)) throw error;
  console.log("rolled back");
} finally {
  await pool.end();
}
