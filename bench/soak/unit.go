// unit.go is the function of a unit: its steps, and the statements of each.

package soak

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/clock"
)

var (
	errOwn    = errors.New("the unit's own error")
	errPanic  = errors.New("the unit's own panic")
	errUndone = errors.New("the inner unit's own error")
)

// unit is the function of d.
func (w *work) unit(ctx context.Context, s *livepool.Session, d *delivery) error {
	number := s.Attempt()
	d.beginAttempt(number, w.run.now())
	whole := false
	defer func() { d.endAttempt(w.run.now(), whole) }()
	s.AfterCommit(func(context.Context) { d.hooked(number) })

	b := body{w: w, d: d, db: s, session: s, t: w.lane.tables, attempt: number}
	for i, step := range d.steps {
		if err := d.doom(i); err != nil {
			return err
		}
		clock.Wait(ctx, nil, d.pauses[i])
		if err := b.do(ctx, i, step); err != nil {
			d.met(step, err)
			if !d.careless {
				return err
			}
		}
	}
	if err := d.doom(len(d.steps)); err != nil {
		return err
	}
	whole = true
	return nil
}

// doom is the end of a unit that is to fail, when it has come so far.
func (p *plan) doom(done int) error {
	switch {
	case p.fate == fails && done == p.fateAt:
		return errOwn
	case p.fate == panics && done == p.fateAt:
		panic(errPanic)
	}
	return nil
}

// statements is what runs them: a session, or a transaction.
type statements interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// body is one attempt.
type body struct {
	w       *work // nil on plain database/sql
	d       *delivery
	db      statements
	session *livepool.Session
	t       tables
	attempt int

	booked     int    // its rows that there should be
	sum, count *int64 // at the first look
}

func (b *body) do(ctx context.Context, i int, s step) error {
	if i == b.d.hasty {
		hasty, cancel := context.WithTimeout(ctx, b.d.haste)
		defer cancel()
		ctx = hasty
	}
	switch s {
	case stepLedger:
		if err := b.book(ctx, b.db, partUnit, b.d.src, b.d.dst, b.d.amount); err != nil {
			return err
		}
		b.booked++
		return nil
	case stepCounter:
		return b.change(ctx, b.db, "UPDATE "+b.t.counter+" SET n = n + 1 WHERE id = ?", b.d.shard())
	case stepTransfer:
		return b.transfer(ctx, b.db, b.d.src, b.d.dst, b.d.amount)
	case stepInner:
		return b.inner(ctx)
	case stepUndone:
		return b.undone(ctx)
	case stepLook:
		return b.look(ctx)
	case stepSum:
		return b.same(ctx, "SELECT SUM(balance * id) FROM "+b.t.account+" WHERE id >= ?", &b.sum)
	default:
		return b.same(ctx, "SELECT SUM(n) FROM "+b.t.counter+" WHERE id >= ?", &b.count)
	}
}

func (b *body) book(ctx context.Context, db statements, part, src, dst, amount int) error {
	return b.change(ctx, db, "INSERT INTO "+b.t.ledger+" (unit, delivery, attempt, part, src, dst, amount) VALUES (?, ?, ?, ?, ?, ?, ?)",
		int(b.d.unit), b.d.delivery, b.attempt, part, src, dst, amount)
}

// transfer goes from one to the other, in no order that would keep two of them
// from a deadlock. Every other one looks first.
func (b *body) transfer(ctx context.Context, db statements, src, dst, amount int) error {
	if amount%2 == 0 {
		if _, err := b.number(ctx, db, "SELECT balance FROM "+b.t.account+" WHERE id = ? FOR UPDATE", src); err != nil {
			return err
		}
	}
	if err := b.change(ctx, db, "UPDATE "+b.t.account+" SET balance = balance - ? WHERE id = ?", amount, src); err != nil {
		return err
	}
	return b.change(ctx, db, "UPDATE "+b.t.account+" SET balance = balance + ? WHERE id = ?", amount, dst)
}

// inner is a unit inside this one that succeeds. It moves the same amount on.
func (b *body) inner(ctx context.Context) error {
	return b.w.pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		if err := b.book(ctx, s, partInner, b.d.dst, b.d.src, b.d.amount); err != nil {
			return err
		}
		return b.transfer(ctx, s, b.d.dst, b.d.src, b.d.amount)
	}, livepool.Name(b.d.name()+", inner"))
}

// undone is one that fails after it has done harm, which the other survives.
func (b *body) undone(ctx context.Context) error {
	err := b.w.pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		s.AfterCommit(func(context.Context) { b.d.sees("the AfterCommit function of an inner unit that failed has run") })
		if err := b.book(ctx, s, partUndone, b.d.src, b.d.src, 1000); err != nil {
			return err
		}
		if err := b.change(ctx, s, "UPDATE "+b.t.account+" SET balance = balance - ? WHERE id = ?", 1000, b.d.src); err != nil {
			return err
		}
		return errUndone
	}, livepool.Name(b.d.name()+", undone"))
	switch {
	case err == nil:
		b.d.sees("an inner unit that failed was reported to have succeeded")
		return errUndone
	case errors.Is(err, errUndone):
		return nil
	}
	return err
}

// look looks for the unit's own rows: what it has written in this attempt, and
// nothing of an earlier one.
func (b *body) look(ctx context.Context) error {
	n, err := b.number(ctx, b.db, "SELECT COUNT(*) FROM "+b.t.ledger+" WHERE unit = ? AND part = 0", int(b.d.unit))
	if err == nil && n != int64(b.booked) {
		b.d.sees("attempt %d sees %d rows of its unit, and has written %d", b.attempt, n, b.booked)
	}
	return err
}

// same asks for a number that others change, and that is the same at every look
// in one transaction. What it is proves nothing: a snapshot of MariaDB may show a
// transaction without the one before it, on plain connections without any fault.
func (b *body) same(ctx context.Context, query string, first **int64) error {
	n, err := b.number(ctx, b.db, query, 0)
	switch {
	case err != nil:
		return err
	case *first == nil:
		*first = &n
	case **first != n:
		b.d.sees("attempt %d: %s was %d and is %d in the same transaction%s", b.attempt, query, **first, n, b.transaction(ctx))
	}
	return nil
}

// transaction is what the servers say of the transaction that this is in: whether
// there is one, since when, and of which isolation.
func (b *body) transaction(ctx context.Context) string {
	if b.w == nil {
		return ""
	}
	id, err := b.number(ctx, b.db, "SELECT CONNECTION_ID()")
	if err != nil {
		return fmt.Sprintf("; its thread does not say which it is: %v", err)
	}
	text := fmt.Sprintf("; of thread %d", id)
	for _, v := range b.w.run.ground.nodes {
		found, err := v.list(ctx, fmt.Sprintf("SELECT CONCAT_WS(' ', trx_state, trx_started, trx_isolation_level, trx_is_read_only) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = %d", id))
		text += fmt.Sprintf(" %s says %q (%v)", v.name, found, err)
	}
	return text
}

// change runs a statement that must change one row.
func (b *body) change(ctx context.Context, db statements, query string, args ...int) error {
	res, err := b.exec(ctx, db, query, args)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n != 1 {
		b.d.sees("attempt %d: %d rows affected by %s %v", b.attempt, n, query, args)
	}
	return err
}

func (b *body) exec(ctx context.Context, db statements, query string, args []int) (sql.Result, error) {
	switch b.d.style {
	case literal:
		return db.ExecContext(ctx, spelled(query, args))
	case withArgs:
		return db.ExecContext(ctx, query, anys(args)...)
	}
	s, err := db.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.ExecContext(ctx, anys(args)...)
}

// number asks for one number, and reads the result to its end.
func (b *body) number(ctx context.Context, db statements, query string, args ...int) (n int64, err error) {
	var rows *sql.Rows
	switch b.d.style {
	case literal:
		rows, err = db.QueryContext(ctx, spelled(query, args))
	case withArgs:
		rows, err = db.QueryContext(ctx, query, anys(args)...)
	default:
		var s *sql.Stmt
		if s, err = db.PrepareContext(ctx, query); err != nil {
			return 0, err
		}
		defer s.Close()
		rows, err = s.QueryContext(ctx, anys(args)...)
	}
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	if !rows.Next() {
		return 0, errors.Join(rows.Err(), sql.ErrNoRows)
	}
	if err := rows.Scan(&n); err != nil {
		return 0, err
	}
	for rows.Next() {
	}
	return n, rows.Err()
}

// spelled puts the arguments into the query.
func spelled(query string, args []int) string {
	for _, arg := range args {
		query = strings.Replace(query, "?", fmt.Sprint(arg), 1)
	}
	return query
}

func anys(args []int) []any {
	all := make([]any, len(args))
	for i, arg := range args {
		all[i] = arg
	}
	return all
}
