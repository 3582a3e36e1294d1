// operations.go has the four operations whose cost the hot path is about, for
// the table of `bench hot`, the benchmarks and the tests alike. It measures
// nothing itself.

package main

import (
	"context"
	"database/sql"
)

// operation is one use of a pool, as a program has it in its hot path.
type operation struct {
	name string
	run  func(ctx context.Context, db *sql.DB) error
}

// pointTable holds the rows of the point query.
const (
	pointTable     = "livepool_bench_point"
	pointRows      = 100
	pointQueryText = "SELECT v FROM " + pointTable + " WHERE id = 42"
)

var operations = []operation{
	{"Conn+Close", connClose},
	{"QueryRow", func(ctx context.Context, db *sql.DB) error {
		var n int64
		return db.QueryRowContext(ctx, "SELECT 1").Scan(&n)
	}},
	{"Exec", func(ctx context.Context, db *sql.DB) error {
		_, err := db.ExecContext(ctx, "DO 1")
		return err
	}},
	{"Begin+Commit", func(ctx context.Context, db *sql.DB) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		return tx.Commit()
	}},
}

func connClose(ctx context.Context, db *sql.DB) error {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	return c.Close()
}

// pointQuery is the smallest honest query: one row by its primary key.
func pointQuery(ctx context.Context, db *sql.DB) error {
	var v int64
	return db.QueryRowContext(ctx, pointQueryText).Scan(&v)
}

// fillPointTable makes what pointQuery reads.
func fillPointTable(ctx context.Context, db *sql.DB) error {
	if _, err := db.ExecContext(ctx, "CREATE TABLE "+pointTable+" (id INT PRIMARY KEY, v BIGINT NOT NULL)"); err != nil {
		return err
	}
	for id := range pointRows {
		if _, err := db.ExecContext(ctx, "INSERT INTO "+pointTable+" VALUES (?, ?)", id, id*id); err != nil {
			return err
		}
	}
	return nil
}
