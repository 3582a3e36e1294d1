// Package sqlx is what the documentation uses of sqlx 1.4, so that its blocks compile
// without it.
package sqlx

import (
	"context"
	"database/sql"
)

type DB struct {
	*sql.DB
	Mapper *Mapper
}

type Mapper struct{}

type Tx struct {
	*sql.Tx
	Mapper *Mapper
}

func NewDb(db *sql.DB, driverName string) *DB { return nil }

func (tx *Tx) SelectContext(ctx context.Context, dest any, query string, args ...any) error {
	return nil
}
