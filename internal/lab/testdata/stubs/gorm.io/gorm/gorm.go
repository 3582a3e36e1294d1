// Package gorm is what the documentation uses of GORM 1.31, so that its blocks compile
// without it.
package gorm

import (
	"context"
	"database/sql"
)

type ConnPool interface {
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

type Statement struct{ ConnPool ConnPool }

type DB struct {
	Error     error
	Statement *Statement
}

type Config struct{}

type Session struct {
	NewDB   bool
	Context context.Context
}

type Dialector any

func Open(dialector Dialector, opts ...*Config) (*DB, error) { return nil, nil }

func (db *DB) Session(config *Session) *DB { return nil }

func (db *DB) Create(value any) *DB { return nil }
