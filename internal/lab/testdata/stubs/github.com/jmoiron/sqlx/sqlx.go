// Package sqlx is what the documentation uses of sqlx 1.4, so that its blocks compile
// without it.
package sqlx

import (
	"context"
	"database/sql"
)

type DB struct{ *sql.DB }

func NewDb(db *sql.DB, driverName string) *DB { return nil }

func (db *DB) SelectContext(ctx context.Context, dest any, query string, args ...any) error {
	return nil
}
