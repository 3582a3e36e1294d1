// job.go is the work: the jobs of a small bank, each reading and writing real
// rows. But for the lane that retries, a job is never tried again here: its error is what
// the pool, or its unit of work, made of the fault. Who did what is checked by ledger.go.

package main

import (
	"context"
	"database/sql"
	"math/rand/v2"

	"github.com/livepool/livepool"
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
func (j job) do(ctx context.Context, p pool, t tables) (connID int64, err error) {
	for left := tries; ; left-- {
		connID, err = j.try(ctx, p, t)
		if err == nil || !p.retry || left == 1 || wait(ctx, retryPause) != nil {
			return connID, err
		}
	}
}

// try is one attempt.
func (j job) try(ctx context.Context, p pool, t tables) (connID int64, err error) {
	switch {
	case p.units != nil:
		return j.unit(ctx, p.units, t)
	case j.kind == deposit:
		return j.transaction(ctx, p.DB, t)
	}
	return j.body(ctx, p.DB, t)
}

// runner runs statements: a pool, a transaction or a session.
type runner interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// body is what the job does.
func (j job) body(ctx context.Context, db runner, t tables) (connID int64, err error) {
	var balance int64
	switch j.kind {
	case deposit:
		if err := db.QueryRowContext(ctx, t.readAccount+" FOR UPDATE", j.account).Scan(&balance, &connID); err != nil {
			return connID, err
		}
		if _, err := db.ExecContext(ctx, t.updateAccount, balance+int64(j.amount), j.account); err != nil {
			return connID, err
		}
		_, err = db.ExecContext(ctx, t.insertLedger, j.id, j.account, j.amount)
	case note:
		_, err = db.ExecContext(ctx, t.insertLedger, j.id, j.account, 0)
	default:
		err = db.QueryRowContext(ctx, t.readAccount, j.account).Scan(&balance, &connID)
	}
	return connID, err
}

// unit runs the job as a unit of work.
func (j job) unit(ctx context.Context, p *livepool.Pool, t tables) (connID int64, err error) {
	option := livepool.VerifyCommit()
	if !j.kind.writes() {
		option = livepool.ReadOnly()
	}
	err = p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		connID, err = j.body(ctx, s, t)
		return err
	}, option)
	return connID, err
}

// transaction runs the job in a plain transaction.
func (j job) transaction(ctx context.Context, db *sql.DB, t tables) (connID int64, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	if connID, err = j.body(ctx, tx, t); err != nil {
		return connID, err
	}
	return connID, tx.Commit()
}
