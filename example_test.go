package livepool_test

// One worked example per feature. They run on a real server: TestExamples of
// internal/lab/behaviour starts it and names it to them.

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
)

// exampleServer is the DSN of the server that the examples run on.
var exampleServer = os.Getenv("LIVEPOOL_EXAMPLES_DSN")

// exampleDB opens a pool on the server, with a bank of two accounts and an audit.
func exampleDB() *livepool.Pool {
	db, err := livepool.Open(exampleServer)
	must(err)
	for _, query := range []string{
		"CREATE TABLE IF NOT EXISTS accounts (id INT PRIMARY KEY, balance INT NOT NULL)",
		"CREATE TABLE IF NOT EXISTS audit (id INT AUTO_INCREMENT PRIMARY KEY, what VARCHAR(100))",
		"REPLACE INTO accounts VALUES (1, 100), (2, 100)",
	} {
		_, err := db.Exec(query)
		must(err)
	}
	must(db.CreateCommitTable(context.Background()))
	return db
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// withExamples runs the tests, and the examples if there is a server for them.
type withExamples struct{ *testing.M }

func (m withExamples) Run() int {
	flag.Parse()
	if skip := flag.Lookup("test.skip"); exampleServer == "" && skip.Value.String() == "" {
		must(skip.Value.Set("^Example"))
	}
	return m.M.Run()
}

// In place of sql.Open("mysql", dsn): the result is a *sql.DB, and more.
func ExampleOpen() {
	db, err := livepool.Open("app:secret@tcp(db.example:3306)/shop?parseTime=true&pool_size=20&pool_recycle=30m")
	if err != nil {
		fmt.Println(err) // a setting that makes no sense; like sql.Open it does not dial
		return
	}
	defer db.Close()
	var plain *sql.DB = db.DB // for code that wants that
	fmt.Println(plain.Stats().MaxOpenConnections)
	// Output: 30
}

// A misspelt setting is an error that says what was meant, and no password.
func ExampleParseDSN() {
	_, err := livepool.ParseDSN("app:secret@tcp(db.example:3306)/shop?maxOverflow=5")
	fmt.Println(strings.SplitAfter(err.Error(), "?")[0])
	// Output: livepool: unknown DSN parameter maxOverflow; did you mean pool_max_overflow?
}

// A unit of work: both updates or neither, whatever happens to the connection.
func ExamplePool_WithSession() {
	db := exampleDB()
	defer db.Close()
	err := db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		if _, err := s.ExecContext(ctx, "UPDATE accounts SET balance = balance - ? WHERE id = ?", 30, 1); err != nil {
			return err // rolled back; run again if the cause may pass
		}
		_, err := s.ExecContext(ctx, "UPDATE accounts SET balance = balance + ? WHERE id = ?", 30, 2)
		return err
	})
	var a, b int
	must(db.QueryRow("SELECT MIN(balance), MAX(balance) FROM accounts").Scan(&a, &b))
	fmt.Println(err, a, b)
	// Output: <nil> 70 130
}

// A payment that arrives twice is made once.
func ExampleOnce() {
	db := exampleDB()
	defer db.Close()
	pay := func() error {
		return db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
			fmt.Println("paying")
			_, err := s.ExecContext(ctx, "UPDATE accounts SET balance = balance - 10 WHERE id = 1")
			return err
		}, livepool.Once("payment 4711"))
	}
	fmt.Println(pay(), pay())
	// Output:
	// paying
	// <nil> <nil>
}

// A second delivery that wants to know whether it was one.
func ExampleReportApplied() {
	db := exampleDB()
	defer db.Close()
	pay := func() error {
		return db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, "UPDATE accounts SET balance = balance - 10 WHERE id = 1")
			return err
		}, livepool.Once("payment 4712"), livepool.ReportApplied())
	}
	fmt.Println(pay(), errors.Is(pay(), livepool.ErrAlreadyApplied))
	// Output: <nil> true
}

// A unit with a result: that of the attempt that was applied.
func ExampleDo() {
	db := exampleDB()
	defer db.Close()
	id, err := livepool.Do(context.Background(), db, func(ctx context.Context, s *livepool.Session) (int64, error) {
		res, err := s.ExecContext(ctx, "INSERT INTO audit (what) VALUES ('done')")
		if err != nil {
			return 0, err
		}
		return res.LastInsertId()
	}, livepool.VerifyCommit())
	fmt.Println(id > 0, err)
	// Output: true <nil>
}

// What becomes of the job.
func ExampleRetryable() {
	settle := func(err error) string {
		switch {
		case err == nil:
			return "ack"
		case livepool.Retryable(err), errors.Is(err, livepool.ErrCommitUnknown): // the unit had Once
			return "redeliver"
		}
		return "dead-letter"
	}
	db := exampleDB()
	job := func(context.Context, *livepool.Session) error { return errors.New("no such account") }
	fmt.Println(settle(db.WithSession(context.Background(), job)))
	db.Close()
	fmt.Println(settle(db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "DO 1")
		return err
	})))
	// Output:
	// dead-letter
	// redeliver
}

// A library that wants a *sql.DB works in the unit, too: its transactions are savepoints.
func ExampleSession_DB() {
	db := exampleDB()
	defer db.Close()
	library := func(db *sql.DB) error {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.Exec("UPDATE accounts SET balance = 7 WHERE id = 1"); err != nil {
			return err
		}
		return tx.Commit()
	}
	err := db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		if err := library(s.DB()); err != nil {
			return err
		}
		return errors.New("not today") // undoes what the library has committed
	})
	var balance int
	must(db.QueryRow("SELECT balance FROM accounts WHERE id = 1").Scan(&balance))
	fmt.Println(err, balance)
	// Output: not today 100
}

// For a readiness probe, and for SIGTERM.
func ExamplePool_Shutdown() {
	db := exampleDB()
	fmt.Println(db.Ready(context.Background()))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := db.Shutdown(ctx); err != nil {
		fmt.Println(err) // what is still under way
		db.Close()
	}
	fmt.Println(errors.Is(db.Ready(context.Background()), livepool.ErrPoolClosed))
	// Output:
	// <nil>
	// true
}

// A COMMIT whose answer is lost is looked up, not guessed: nil means applied
// once, and an error that it was not.
func ExampleVerifyCommit() {
	db := exampleDB()
	defer db.Close()
	err := db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "UPDATE accounts SET balance = balance + 1 WHERE id = 1")
		return err
	}, livepool.VerifyCommit())
	fmt.Println(err)
	// Output: <nil>
}

// A report changes nothing, so it is run again whatever happens.
func ExampleReadOnly() {
	db := exampleDB()
	defer db.Close()
	var total int
	err := db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		return s.QueryRowContext(ctx, "SELECT SUM(balance) FROM accounts").Scan(&total)
	}, livepool.ReadOnly(), livepool.Isolation(sql.LevelRepeatableRead))
	fmt.Println(err, total)
	// Output: <nil> 200
}

// A read may be served by a replica, where the DSN lists several hosts, and sees what the
// unit with this token has committed. Without a replica, as here, the primary serves it.
func ExampleFromReplica() {
	db := exampleDB()
	defer db.Close()
	var token string
	err := db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		token = s.Token()
		_, err := s.ExecContext(ctx, "UPDATE accounts SET balance = 50 WHERE id = 1")
		return err
	}, livepool.VerifyCommit())
	must(err)
	var balance int
	err = db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		return s.QueryRowContext(ctx, "SELECT balance FROM accounts WHERE id = 1").Scan(&balance)
	}, livepool.ReadOnly(), livepool.FromReplica(), livepool.After(token))
	fmt.Println(err, balance)
	// Output: <nil> 50
}

// The number of attempts can be set for one unit, and its name for the logs.
func ExampleMaxAttempts() {
	db := exampleDB()
	defer db.Close()
	err := db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		fmt.Println("attempt", s.Attempt())
		_, err := s.ExecContext(ctx, "UPDATE accounts SET balance = 0 WHERE id = 1")
		return err
	}, livepool.MaxAttempts(3), livepool.Name("nightly reset"))
	fmt.Println(err)
	// Output:
	// attempt 1
	// <nil>
}

// What must not happen unless the work is committed, such as a mail, waits.
func ExampleSession_AfterCommit() {
	db := exampleDB()
	defer db.Close()
	err := db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		s.AfterCommit(func(context.Context) { fmt.Println("mail sent") })
		_, err := s.ExecContext(ctx, "UPDATE accounts SET balance = balance - 5 WHERE id = 2")
		fmt.Println("work done")
		return err
	})
	fmt.Println(err)
	// Output:
	// work done
	// mail sent
	// <nil>
}

// A unit inside another one joins its transaction with a savepoint, unless it
// is to be kept whatever becomes of the outer one.
func ExampleRequiresNew() {
	db := exampleDB()
	defer db.Close()
	audit := func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "INSERT INTO audit (what) VALUES ('tried')")
		return err
	}
	err := db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		if err := db.WithSession(ctx, audit, livepool.RequiresNew()); err != nil {
			return err
		}
		return errors.New("not enough money")
	})
	var kept int
	must(db.QueryRow("SELECT COUNT(*) FROM audit WHERE what = 'tried'").Scan(&kept))
	fmt.Println(err, kept)
	// Output: not enough money 1
}

// Code far below the job body finds the session of its unit in the context.
func ExampleFromContext() {
	db := exampleDB()
	defer db.Close()
	deep := func(ctx context.Context) error {
		s, ok := livepool.FromContext(ctx)
		if !ok {
			return errors.New("not in a unit of work")
		}
		_, err := s.ExecContext(ctx, "UPDATE accounts SET balance = balance + 1 WHERE id = 1")
		return err
	}
	fmt.Println(db.WithSession(context.Background(), func(ctx context.Context, _ *livepool.Session) error { return deep(ctx) }))
	fmt.Println(deep(context.Background()))
	// Output:
	// <nil>
	// not in a unit of work
}

// A library that wants the *sql.Tx itself gets it; the session still ends it.
func ExampleSession_Tx() {
	db := exampleDB()
	defer db.Close()
	fmt.Println(db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		tx, err := s.Tx(ctx)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "UPDATE accounts SET balance = 7 WHERE id = 1")
		return err
	}))
	// Output: <nil>
}

// A job body for a runner: it gets an id, never an object, and is applied once
// for each id however often the runner delivers it.
func ExampleJob() {
	db := exampleDB()
	defer db.Close()
	interest := livepool.Job(db, func(ctx context.Context, s *livepool.Session, account int64) error {
		_, err := s.ExecContext(ctx, "UPDATE accounts SET balance = balance * 2 WHERE id = ?", account)
		return err
	}, livepool.OncePerID("interest 2026"))

	fmt.Println(interest(context.Background(), 1), interest(context.Background(), 1))
	var balance int
	must(db.QueryRow("SELECT balance FROM accounts WHERE id = 1").Scan(&balance))
	fmt.Println(balance)
	// Output:
	// <nil> <nil>
	// 200
}

// A function that may run twice needs no transaction.
func ExamplePool_Retry() {
	db := exampleDB()
	defer db.Close()
	fmt.Println(db.Retry(context.Background(), func(ctx context.Context) error {
		_, err := db.ExecContext(ctx, "UPDATE accounts SET balance = 50 WHERE id = 1")
		return err
	}))
	// Output: <nil>
}

// A single statement that may run twice.
func ExampleIdempotent() {
	db := exampleDB()
	defer db.Close()
	_, err := db.ExecContext(livepool.Idempotent(context.Background()), "UPDATE accounts SET balance = 50 WHERE id = 1")
	fmt.Println(err)
	// Output: <nil>
}

// Keys of the commit table are kept until they are purged: longer than any
// redelivery takes.
func ExamplePool_PurgeCommits() {
	db := exampleDB()
	defer db.Close()
	_, err := db.PurgeCommits(context.Background(), 30*24*time.Hour)
	fmt.Println(err)
	// Output: <nil>
}

// The outcome of a commit is one of three.
func ExampleErrCommitUnknown() {
	db := exampleDB()
	defer db.Close()
	err := db.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "UPDATE accounts SET balance = balance + 1 WHERE id = 1")
		return err
	})
	switch {
	case err == nil:
		fmt.Println("applied once")
	case errors.Is(err, livepool.ErrCommitUnknown):
		fmt.Println("applied once or not at all: look before you repeat it")
	default:
		fmt.Println("not applied")
	}
	// Output: applied once
}
