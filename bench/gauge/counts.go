package gauge

import (
	"context"
	"database/sql"
)

// Counts returns what a query of two columns finds, an id and how many rows it has: jobs
// held against what they were told.
func Counts[ID ~int | ~int64](ctx context.Context, db interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}, query string,
) (map[ID]int, error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	counts := map[ID]int{}
	for rows.Next() {
		var id ID
		var n int
		if err := rows.Scan(&id, &n); err != nil {
			return nil, err
		}
		counts[id] = n
	}
	return counts, rows.Err()
}
