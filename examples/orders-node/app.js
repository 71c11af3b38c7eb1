// Orders, in Express: each customer watches their own orders change, live.

import session from "cookie-session";
import express from "express";
import jwt from "jsonwebtoken";
import pg from "pg";

const { DATABASE_URL, SESSION_SECRET, PORT = "8000", SSE_URL = "http://127.0.0.1:8081" } = process.env;
const JWT_SECRET = process.env.AFTERCOMMIT_JWT_SECRET; // the same as the SSE server's
const TOKEN_SECONDS = Number(process.env.TOKEN_SECONDS ?? 900);

const SCHEMA = `
  create table if not exists stock (item text primary key, amount int not null check (amount >= 0));
  create table if not exists orders (
    id bigint generated always as identity primary key, customer text not null, item text not null,
    status text not null default 'placed', version int not null default 1);
  insert into stock values ('book', 1000), ('violin', 1) on conflict do nothing;`;
const COLUMNS = "id::int, item, status, version";
const STEPS = { pay: ["placed", "paid"], ship: ["paid", "shipped"] }; // the status before, and after
const CHECK_VIOLATION = "23514";

const pool = new pg.Pool({ connectionString: DATABASE_URL });
await pool.query(SCHEMA);

/** An error that the customer may read. */
class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

/** Runs `work` in one transaction: it commits at the end, and rolls back on an error. */
async function transaction(work) {
  const db = await pool.connect();
  try {
    await db.query("begin");
    const result = await work(db);
    await db.query("commit");
    return result;
  } catch (error) {
    await db.query("rollback");
    throw error;
  } finally {
    db.release();
  }
}

/** The customer who is signed in. */
function customer(req) {
  if (!req.session.customer) throw new Refused(401, "sign in first");
  return req.session.customer;
}

/** The topic that carries all orders of this customer, and nobody else's. */
const topic = (req) => `customer:${customer(req)}`;

/** Puts the customer's transactions one behind the other, which orders the events of their topic. */
const lock = (db, topic) => db.query("select outbox.lock_topic($1)", [topic]);

/** Appends the order as it is now: the event commits with the change, or not at all. */
const append = (db, topic, type, order) =>
  db.query("select outbox.append($1, $2, $3)", [topic, type, JSON.stringify(order)]);

const app = express();
app.use(express.json(), session({ secret: SESSION_SECRET, sameSite: "lax" }));

app.get("/", (req, res) => res.sendFile("index.html", { root: import.meta.dirname }));

/** Believes the name: put your own sign-in here. */
app.post("/sign-in", (req, res) => {
  const name = req.body.customer;
  if (!/^[a-z0-9-]{1,40}$/.test(name)) throw new Refused(400, "a name has 1 to 40 characters of a-z 0-9 -");
  req.session.customer = name;
  res.json({ customer: name });
});

/** A token that opens this customer's topic, for a short time. */
app.post("/token", (req, res) => {
  const claims = { sub: customer(req), subscribe: [topic(req)] };
  const token = jwt.sign(claims, JWT_SECRET, { expiresIn: TOKEN_SECONDS });
  res.json({ token, topic: topic(req), server: SSE_URL });
});

/** The orders, and which events they hold: one statement reads both. */
app.get("/orders", async (req, res) => {
  const sql = `select outbox.resume_token() as "resumeToken", coalesce((select json_agg(o) from (
      select ${COLUMNS} from orders where customer = $1 order by orders.id) o), '[]') as orders`;
  res.json((await pool.query(sql, [customer(req)])).rows[0]);
});

app.post("/orders", async (req, res) => {
  const { item } = req.body;
  res.status(201).json(await transaction(async (db) => {
    await lock(db, topic(req));
    const sql = `insert into orders (customer, item) values ($1, $2) returning ${COLUMNS}`;
    const order = (await db.query(sql, [customer(req), item])).rows[0];
    await append(db, topic(req), "ORDER_PLACED", order);
    await db.query("update stock set amount = amount - 1 where item = $1", [item]).catch((error) => {
      throw error.code === CHECK_VIOLATION ? new Refused(409, `${item} is sold out`) : error;
    }); // rolls back: there is no order, and no event
    return order;
  }));
});

app.post("/orders/:id/:step", async (req, res) => {
  const [before, after] = STEPS[req.params.step] ?? [];
  res.json(await transaction(async (db) => {
    await lock(db, topic(req));
    const sql = `update orders set status = $1, version = version + 1
      where id = $2 and customer = $3 and status = $4 returning ${COLUMNS}`;
    const order = (await db.query(sql, [after, req.params.id, customer(req), before])).rows[0];
    if (!order) throw new Refused(409, `you have no order ${req.params.id} that is ${before}`);
    await append(db, topic(req), `ORDER_${after.toUpperCase()}`, order);
    return order;
  }));
});

app.use((error, req, res, next) => {
  if (!error.status) console.error(error);
  res.status(error.status ?? 500).send(error.status ? error.message : "the order could not be changed");
});

app.listen(Number(PORT), "127.0.0.1", () => console.log(`http://127.0.0.1:${PORT}`));
