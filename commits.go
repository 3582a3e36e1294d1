// commits.go creates and purges the table of committed keys. What the keys are for is
// once.go's affair.

package livepool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/livepool/livepool/internal/committable"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// CreateCommitTable creates the table that Once and VerifyCommit need
// (Config.CommitTable), if it does not exist. One that exists and cannot keep their
// promise is an error.
func (p *Pool) CreateCommitTable(ctx context.Context) error {
	ct := &p.ctr.CommitTable
	if ct.NoSchemaErr != nil {
		return ct.NoSchemaErr
	}
	if _, err := p.ExecContext(ctx, ct.DDL()); err != nil {
		return fmt.Errorf("livepool: creating the commit table %s: %w", ct.Name, ct.Explain(err))
	}
	if !p.ctr.IsMySQL {
		return nil
	}
	_, err := inspectTable(ctx, ct, p.DB)
	return err
}

// inspectTable looks at the table, and returns the name of its unique key.
func inspectTable(ctx context.Context, ct *committable.Table, db interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}) (key string, err error) {
	rows, err := db.QueryContext(ctx, "SHOW CREATE TABLE "+ct.Name)
	if err != nil {
		return "", ct.Explain(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return "", err
	}
	row := make([]sql.NullString, len(columns))
	into := make([]any, len(columns))
	for i := range row {
		into[i] = &row[i]
	}
	if rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return "", err
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || len(row) < 2 {
		return "", err
	}
	key, defects := committable.Inspect(row[1].String)
	return key, ct.Refusal(defects)
}

// purgeBatch bounds the locks that PurgeCommits holds at a time, and for how long.
const purgeBatch = 100

// PurgeCommits removes the keys of committed units that are older than olderThan
// and returns how many. A key's age is counted from its insert, at the beginning
// of its unit (the server's clock). Once it is removed such a unit would be
// applied again: choose a time beyond the longest unit and any redelivery.
//
// It works in small transactions of its own, beside units that go on, and ends
// with the keys that were old when it began. If it fails it returns how many it
// has removed by then.
func (p *Pool) PurgeCommits(ctx context.Context, olderThan time.Duration) (removed int64, err error) {
	if olderThan < 0 {
		return 0, fmt.Errorf("livepool: PurgeCommits(%s): takes a duration of 0 or more", olderThan)
	}
	if err := p.ctr.CommitTable.NoSchemaErr; err != nil {
		return 0, err
	}
	purge := &purge{table: &p.ctr.CommitTable, olderThan: olderThan}
	for unknowns := 0; ; {
		err := p.WithSession(ctx, purge.batch, RequiresNew(), Isolation(sql.LevelRepeatableRead), Name("PurgeCommits"))
		if errors.Is(err, mysqlerr.ErrCommitUnknown) && unknowns < 3 && ctx.Err() == nil {
			unknowns++
			continue // with the same keys: to delete them again tells
		}
		if err != nil {
			return removed, fmt.Errorf("livepool: purging %s, of which %d keys were removed: %w", p.ctr.CommitTable.Name, removed, err)
		}
		removed += purge.deleted
		if len(purge.keys) < purgeBatch {
			return removed, nil
		}
		purge.keys, purge.deleted, unknowns = nil, 0, 0
	}
}

// purge is the state of one PurgeCommits.
type purge struct {
	table     *committable.Table
	olderThan time.Duration
	before    string // seconds since 1970 of the server's clock, once that was asked
	index     string // by which a key is found
	keys      []string
	deleted   int64 // of them
}

// batch deletes some old keys, each looked up by its name. A DELETE by their age, or
// of a list of names (IN), would look at the keys between them too: it would lock
// those, and wait for units that are running.
func (pu *purge) batch(ctx context.Context, s *Session) (err error) {
	if pu.index == "" {
		if pu.index, err = inspectTable(ctx, pu.table, s); err != nil {
			return err
		}
		now := s.QueryRowContext(ctx, fmt.Sprintf("SELECT UNIX_TIMESTAMP() - %.6f", pu.olderThan.Seconds()))
		if err := now.Scan(&pu.before); err != nil {
			return err
		}
	}
	if pu.keys == nil {
		if err := pu.find(ctx, s); err != nil || len(pu.keys) == 0 {
			return err
		}
	}
	res, err := s.ExecContext(ctx, fmt.Sprintf("DELETE %[1]s FROM (SELECT %[2]s AS unit) AS old STRAIGHT_JOIN %[1]s FORCE INDEX (%[3]s) ON %[1]s.unit = old.unit",
		pu.table.Name, strings.Join(pu.keys, " AS unit UNION ALL SELECT "), committable.QuoteName(pu.index)))
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	pu.deleted = max(pu.deleted, n) // none where the lost COMMIT of the first try happened
	return err
}

// find takes the names of some old keys out of a snapshot, which locks nothing. Of
// the conditions the first has the index, the second is right when the clocks
// change.
func (pu *purge) find(ctx context.Context, s *Session) error {
	rows, err := s.QueryContext(ctx, fmt.Sprintf("SELECT unit FROM %s WHERE committed_at <= NOW() - INTERVAL %d MICROSECOND AND UNIX_TIMESTAMP(committed_at) <= %s LIMIT %d",
		pu.table.Name, pu.olderThan.Microseconds(), pu.before, purgeBatch))
	if err != nil {
		return err
	}
	defer rows.Close()
	var keys []string
	for rows.Next() {
		var key []byte
		if err := rows.Scan(&key); err != nil {
			return err
		}
		keys = append(keys, committable.KeyLiteral(string(key)))
	}
	pu.keys = keys
	return errors.Join(rows.Err(), rows.Close())
}
