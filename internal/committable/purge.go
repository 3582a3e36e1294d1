// purge.go looks at the table of a server, and deletes old keys from it.

package committable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// PurgeBatch bounds the locks that a purge holds at a time, and for how long.
const PurgeBatch = 100

// Querier is the session of a purge.
type Querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// InspectTable looks at the table, and returns the name of its unique key.
func InspectTable(ctx context.Context, ct *Table, db interface {
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
	key, defects := Inspect(row[1].String)
	return key, ct.Refusal(defects)
}

// Purge is the state of one PurgeCommits.
type Purge struct {
	Table     *Table
	OlderThan time.Duration
	before    string // seconds since 1970 of the server's clock, once that was asked
	index     string // by which a key is found
	Keys      []string
	Deleted   int64 // of them
}

// Batch deletes some old keys, each looked up by its name. A DELETE by their age, or
// of a list of names (IN), would look at the keys between them too: it would lock
// those, and wait for units that are running.
func (pu *Purge) Batch(ctx context.Context, db Querier) (err error) {
	if pu.index == "" {
		if pu.index, err = InspectTable(ctx, pu.Table, db); err != nil {
			return err
		}
		now := db.QueryRowContext(ctx, fmt.Sprintf("SELECT UNIX_TIMESTAMP() - %.6f", pu.OlderThan.Seconds()))
		if err := now.Scan(&pu.before); err != nil {
			return err
		}
	}
	if pu.Keys == nil {
		if err := pu.find(ctx, db); err != nil || len(pu.Keys) == 0 {
			return err
		}
	}
	res, err := db.ExecContext(ctx, fmt.Sprintf("DELETE %[1]s FROM (SELECT %[2]s AS unit) AS old STRAIGHT_JOIN %[1]s FORCE INDEX (%[3]s) ON %[1]s.unit = old.unit",
		pu.Table.Name, strings.Join(pu.Keys, " AS unit UNION ALL SELECT "), quoteName(pu.index)))
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	pu.Deleted = max(pu.Deleted, n) // none where the lost COMMIT of the first try happened
	return err
}

// find takes the names of some old keys out of a snapshot, which locks nothing. Of
// the conditions the first has the index, the second is right when the clocks
// change.
func (pu *Purge) find(ctx context.Context, db Querier) error {
	rows, err := db.QueryContext(ctx, fmt.Sprintf("SELECT unit FROM %s WHERE committed_at <= NOW() - INTERVAL %d MICROSECOND AND UNIX_TIMESTAMP(committed_at) <= %s LIMIT %d",
		pu.Table.Name, pu.OlderThan.Microseconds(), pu.before, PurgeBatch))
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
		keys = append(keys, KeyLiteral(string(key)))
	}
	pu.Keys = keys
	return errors.Join(rows.Err(), rows.Close())
}
