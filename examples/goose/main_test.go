package main

import (
	"context"
	"database/sql"
	"testing"

	"github.com/pressly/goose/v3"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/examples/internal/storm"
)

func TestGoose(t *testing.T) {
	storm.TestMigrations(t, "goose", run, storm.Migrations{
		Lock:    lockName,
		Applied: "SELECT GROUP_CONCAT(id, ':', version_id ORDER BY id) FROM goose_db_version",
		Up: func(ctx context.Context, p *livepool.Pool, between func(int)) error {
			// Migrations in Go, which goose runs beside the connection that it holds.
			after := func(version int64, applied int) *goose.Migration {
				return goose.NewGoMigration(version, &goose.GoFunc{RunDB: func(context.Context, *sql.DB) error {
					between(applied)
					return nil
				}}, nil)
			}
			return up(ctx, p, goose.WithGoMigrations(after(15, 1), after(25, 2)))
		},
	})
}
