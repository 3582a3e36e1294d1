package storm

import (
	"context"
	"database/sql"
	"errors"
)

// Transaction runs fn in a transaction of database/sql, for what has none of its own. On
// anything but a *sql.DB, such as a *sql.Tx, one is open already.
func Transaction(ctx context.Context, on any, fn func(*sql.Tx) error) error {
	db, _ := on.(*sql.DB)
	if db == nil {
		return errors.ErrUnsupported
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// Scan reads items, for what leaves that to database/sql: id, v, big, note and at.
func Scan(rows *sql.Rows) (items []Item, err error) {
	defer rows.Close()
	for rows.Next() {
		var i Item
		if err := rows.Scan(&i.ID, &i.V, &i.Big, &i.Note, &i.At); err != nil {
			return nil, err
		}
		items = append(items, i)
	}
	return items, rows.Err()
}
