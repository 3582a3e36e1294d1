// job.go is the work: the jobs of a small bank, each reading and writing real
// rows. A job is never tried again here: its error is what the pool made of
// the fault. Who did what is checked by ledger.go.

package main

import (
	"context"
	"database/sql"
	"math/rand/v2"
)

type jobKind int

const (
	deposit jobKind = iota // a transaction: read the account, update it, write the ledger
	note                   // one INSERT, outside a transaction
	lookup                 // one SELECT, outside a transaction
)

// writes says whether a job of this kind leaves a row in the ledger.
func (k jobKind) writes() bool { return k != lookup }

const (
	accounts       = 50
	openingBalance = 1000
)

type job struct {
	id      int
	kind    jobKind
	account int
	amount  int
}

// makeJobs returns n jobs, numbered from first: three in five deposits, one in
// five notes, one in five lookups.
func makeJobs(rng *rand.Rand, first, n int) []job {
	kinds := [5]jobKind{deposit, deposit, deposit, note, lookup}
	jobs := make([]job, n)
	for i := range jobs {
		jobs[i] = job{
			id:      first + i,
			kind:    kinds[rng.IntN(len(kinds))],
			account: rng.IntN(accounts),
			amount:  1 + rng.IntN(100),
		}
	}
	return jobs
}

// do runs the job and returns the server's id of the connection it ran on, 0
// if it did not learn it.
func (j job) do(ctx context.Context, db *sql.DB, t tables) (connID int64, err error) {
	switch j.kind {
	case deposit:
		return j.deposit(ctx, db, t)
	case note:
		_, err = db.ExecContext(ctx, t.insertLedger, j.id, j.account, 0)
		return 0, err
	default:
		var balance int64
		err = db.QueryRowContext(ctx, t.readAccount, j.account).Scan(&balance, &connID)
		return connID, err
	}
}

func (j job) deposit(ctx context.Context, db *sql.DB, t tables) (connID int64, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	var balance int64
	if err := tx.QueryRowContext(ctx, t.readAccount+" FOR UPDATE", j.account).Scan(&balance, &connID); err != nil {
		return connID, err
	}
	if _, err := tx.ExecContext(ctx, t.updateAccount, balance+int64(j.amount), j.account); err != nil {
		return connID, err
	}
	if _, err := tx.ExecContext(ctx, t.insertLedger, j.id, j.account, j.amount); err != nil {
		return connID, err
	}
	return connID, tx.Commit()
}
