"""A pool of SQLAlchemy on PyMySQL, told on stdin what to do. peers_test.go has an example of each order and answer."""
import argparse, json, os, sys, threading, time

import pymysql, sqlalchemy
from sqlalchemy import text

args = argparse.ArgumentParser()
for name in "host", "user", "database":
    args.add_argument("--" + name, required=True)
for name in "port", "size":
    args.add_argument("--" + name, type=int, required=True)
args.add_argument("--pre-ping", action="store_true")
args = args.parse_args()

# The defaults stay: QueuePool, pool_timeout 30 s, no pool_recycle, rollback on return.
engine = sqlalchemy.create_engine(
    sqlalchemy.URL.create("mysql+pymysql", args.user, os.environ["BENCH_PASSWORD"], args.host, args.port, args.database),
    pool_size=args.size, max_overflow=0, pool_pre_ping=args.pre_ping)
QUERY, EXEC = text("SELECT v FROM bench_point WHERE id = :id"), text("DO 1")
JOB = text("INSERT INTO bench_job (id) VALUES (:id)")
LOCK = text("UPDATE bench_lock SET v = v + 1 WHERE id = 1")
writing = threading.Lock()


def answer(**fields):
    line = json.dumps(fields) + "\n"
    with writing:
        sys.stdout.write(line)
        sys.stdout.flush()


def query(number):
    with engine.connect() as c:
        c.execute(QUERY, {"id": number % 1000 + 1}).scalar()


def execute(number):
    with engine.connect() as c:
        c.execute(EXEC)


def job(number):
    with engine.begin() as c:
        c.execute(JOB, {"id": number})


class Load:
    """One order: callers that work at the same time until its seconds are over."""

    def __init__(self, order):
        self.order, self.kind = order, order["kind"]
        self.work = {"query": query, "exec": execute, "job": job}[self.kind]
        self.lock, self.next, self.closed = threading.Lock(), order.get("first_id", 0), False
        self.took, self.failed, self.begun = [], 0, {}

    def caller(self):
        every = self.order.get("every_ms", 0) / 1000
        due = time.monotonic()
        while time.monotonic() < self.end:
            self.one()
            if every:
                due = max(due + every, time.monotonic())
                time.sleep(max(0, min(due, self.end) - time.monotonic()))

    def one(self):
        with self.lock:
            if time.monotonic() >= self.end:
                return
            number, start_us = self.next, time.time_ns() // 1000
            self.next += 1
            self.begun[number] = start_us
        start, error = time.perf_counter_ns(), None
        try:
            self.work(number)
        except Exception as e:
            error = (str(e) or repr(e)).splitlines()[0][:200]
        took = time.perf_counter_ns() - start
        with self.lock:
            if self.closed:
                return  # told as hung
            del self.begun[number]
            if error is None:
                self.took.append(took / 1000)
            else:
                self.failed += 1
        if self.kind == "job":
            self.tell(number, start_us, "ok" if error is None else "failed", error)

    def tell(self, number, start_us, outcome, error):
        answer(id=number, start_us=start_us, end_us=time.time_ns() // 1000, outcome=outcome, error=error or "")

    def run(self):
        self.end = time.monotonic() + self.order["seconds"]
        threads = [threading.Thread(target=self.caller, daemon=True) for _ in range(self.order["callers"])]
        for t in threads:
            t.start()
        deadline = self.end + self.order.get("deadline_seconds", 30)
        for t in threads:
            t.join(max(0, deadline - time.monotonic()))
        with self.lock:
            self.closed = True
            hung = dict(self.begun)
        for number, start_us in hung.items() if self.kind == "job" else ():
            self.tell(number, start_us, "hung", "no answer at the deadline")
        took = sorted(self.took)
        at = lambda share: took[min(len(took) - 1, int(len(took) * share))] if took else 0
        answer(done=True, kind=self.kind, operations=len(took) + self.failed + len(hung),
               p50_us=at(0.50), p99_us=at(0.99), failed=self.failed + len(hung))


def hold(order):
    """Holds a row, runs a statement, rolls back. PyMySQL has no time-out for one statement: it waits."""
    held, ended, failed = threading.Event(), threading.Event(), []

    def holder():
        try:
            with engine.connect() as c:
                c.execute(LOCK)
                answer(held=True)
                held.set()
                time.sleep(order["pause_ms"] / 1000)
                c.execute(text(order["statement"]))
        except Exception:
            failed.append(True)
        ended.set()
        held.set()

    threading.Thread(target=holder, daemon=True).start()
    held.wait()
    back = ended.wait(order["seconds"])
    answer(done=True, kind="lock", failed=int(bool(failed) or not back))


def obey(order):
    kind = order["kind"]
    try:
        if kind in ("query", "exec", "job"):
            Load(order).run()
        elif kind == "lock":
            hold(order)
        else:
            answer(done=True, kind=kind, unsupported=True)
    except RuntimeError:  # so many threads cannot be started
        answer(done=True, kind=kind, unsupported=True)


threading.stack_size(256 * 1024)
with engine.connect() as c:
    c.execute(text("SELECT 1"))
# PyMySQL's __version__ is that of the library which it stands in for.
answer(ready=True, name="SQLAlchemy %s, PyMySQL %s, Python %s%s" % (
    sqlalchemy.__version__, pymysql.VERSION_STRING, sys.version.split()[0], ", pre-ping" if args.pre_ping else ""))
for line in sys.stdin:
    order = json.loads(line)
    if order["kind"] == "recycle":
        engine.dispose()
        answer(done=True, kind="recycle")
    else:
        threading.Thread(target=obey, args=(order,), daemon=True).start()
os._exit(0)  # whatever hangs
