package behaviour_test

// Results that are being read inside a transaction.

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
)

// The deadlock may come while rows are read, which few programs check for.
func TestSwallowedDeadlockOfAResult(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	for _, prepared := range []bool{false, true} {
		causeDeadlock(t, s, func(block func()) {
			tx, err := p.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := tx.Exec("UPDATE account SET balance = balance + 1 WHERE id = 1"); err != nil {
				t.Fatal(err)
			}
			block()
			query, args := "SELECT id FROM account WHERE id >= 5 ORDER BY id FOR UPDATE", []any(nil)
			if prepared {
				query, args = "SELECT id FROM account WHERE id >= ? ORDER BY id FOR UPDATE", []any{5}
			}
			rows, err := tx.Query(query, args...)
			if err == nil {
				for rows.Next() {
				}
				err = rows.Err()
				rows.Close()
			}
			var my *mysql.MySQLError
			if !errors.As(err, &my) || my.Number != 1213 {
				t.Fatalf("got %v, want a deadlock", err)
			}
			if _, err := tx.Exec("INSERT INTO t (v) VALUES (7)"); !errors.Is(err, livepool.ErrPoisoned) {
				t.Errorf("prepared %v: the statement after it: %v, want ErrPoisoned", prepared, err)
			}
			tx.Rollback()
			if n := count(t, s, "t WHERE v = 7"); n != 0 {
				t.Errorf("prepared %v: %d rows survive, want none", prepared, n)
			}
		})
	}
}

// A statement sent into the middle of a result would read the result's rest as
// its answer.
func TestOpenResultRefusesTheNextStatement(t *testing.T) {
	_, p := openLedger(t, server.MariaDB)
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	rows, err := tx.Query("SELECT id FROM account")
	if err != nil {
		t.Fatal(err)
	}
	rows.Next()
	if _, err := tx.Exec("INSERT INTO t (v) VALUES (1)"); err == nil || !strings.Contains(err.Error(), "still open") {
		t.Errorf("got %v", err)
	}
	rows.Close()
	if _, err := tx.Exec("INSERT INTO t (v) VALUES (1)"); err != nil {
		t.Errorf("with the result closed: %v", err)
	}
}
