// ledger.go owns the tables of one lane, and checks them against what the jobs
// were told: which were lost, applied although they failed, or applied twice.

package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/livepool/livepool/bench/gauge"
)

// tables are one lane's own, so that the lanes do not meet on the server.
type tables struct {
	account, ledger, commits                 string
	readAccount, updateAccount, insertLedger string
}

func newTables(lane string) tables {
	account, ledger := "livepool_bench_"+lane+"_account", "livepool_bench_"+lane+"_ledger"
	return tables{
		account: account, ledger: ledger, commits: "livepool_bench_" + lane + "_commits",
		readAccount:   "SELECT balance, CONNECTION_ID() FROM " + account + " WHERE id = ?",
		updateAccount: "UPDATE " + account + " SET balance = ? WHERE id = ?",
		insertLedger:  "INSERT INTO " + ledger + " (job, account, amount) VALUES (?, ?, ?)",
	}
}

// create makes the tables afresh. The ledger's job is not unique: a job that
// is applied twice must show.
func (t tables) create(ctx context.Context, db *sql.DB) error {
	if err := t.drop(ctx, db); err != nil {
		return err
	}
	values := make([]string, accounts)
	for id := range values {
		values[id] = fmt.Sprintf("(%d, %d)", id, openingBalance)
	}
	return execAll(ctx, db,
		"CREATE TABLE "+t.account+" (id INT PRIMARY KEY, balance BIGINT NOT NULL)",
		"CREATE TABLE "+t.ledger+" (id INT AUTO_INCREMENT PRIMARY KEY, job INT NOT NULL, account INT NOT NULL, amount BIGINT NOT NULL)",
		"INSERT INTO "+t.account+" VALUES "+strings.Join(values, ", "))
}

func (t tables) drop(ctx context.Context, db *sql.DB) error {
	return execAll(ctx, db, "DROP TABLE IF EXISTS "+t.account, "DROP TABLE IF EXISTS "+t.ledger, "DROP TABLE IF EXISTS "+t.commits)
}

func execAll(ctx context.Context, db *sql.DB, statements ...string) error {
	for _, s := range statements {
		if _, err := db.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%.60s: %w", s, err)
		}
	}
	return nil
}

// audit is what the ledger says of the jobs.
type audit struct {
	lost          int   // failed, and left nothing: the work was not done
	failedYetDone int   // failed, and applied all the same: a naive retry applies it twice
	twice         int   // applied more than once
	vanished      int   // succeeded, and not in the ledger
	discrepancy   int64 // the accounts' money less what the ledger says
}

// auditLane reads the tables and holds them against the samples.
func auditLane(ctx context.Context, db *sql.DB, t tables, samples []sample) (audit, error) {
	rows, err := countRows(ctx, db, t)
	if err != nil {
		return audit{}, err
	}
	a := checkSamples(samples, rows)
	var money, booked int64
	if err := db.QueryRowContext(ctx, "SELECT SUM(balance) FROM "+t.account).Scan(&money); err != nil {
		return audit{}, err
	}
	if err := db.QueryRowContext(ctx, "SELECT COALESCE(SUM(amount), 0) FROM "+t.ledger).Scan(&booked); err != nil {
		return audit{}, err
	}
	a.discrepancy = money - accounts*openingBalance - booked
	return a, nil
}

// countRows returns how many rows each job left in the ledger.
func countRows(ctx context.Context, db *sql.DB, t tables) (map[int]int, error) {
	return gauge.Counts[int](ctx, db, "SELECT job, COUNT(*) FROM "+t.ledger+" GROUP BY job")
}

// checkSamples holds what the jobs were told against what they left, and notes in
// each sample how often its job was applied.
func checkSamples(samples []sample, rows map[int]int) (a audit) {
	for i := range samples {
		s, n := &samples[i], rows[samples[i].job.id]
		s.applied = n
		switch {
		case n > 1:
			a.twice++
		case s.failed() && n == 0:
			a.lost++
		case s.failed():
			a.failedYetDone++
		case s.job.kind.writes() && n == 0:
			a.vanished++
		}
	}
	return a
}
