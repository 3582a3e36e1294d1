package main

import (
	"context"
	"io/fs"
	"strings"
	"testing"

	"github.com/golang-migrate/migrate/v4/database"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/examples/internal/storm"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// slowFiles are the migrations of the program, the second and third of which come when
// something has happened, for the first time.
type slowFiles struct {
	fs.FS

	before map[string]func() // by the beginning of their names
}

func (f slowFiles) Open(name string) (fs.File, error) {
	for start, happen := range f.before {
		if strings.HasPrefix(name, "migrations/"+start) {
			delete(f.before, start)
			happen()
		}
	}
	return f.FS.Open(name)
}

func TestMigrate(t *testing.T) {
	lock, err := database.GenerateAdvisoryLockId("test:schema_migrations")
	if err != nil {
		t.Fatal(err)
	}
	storm.TestMigrations(t, "golang-migrate", run, storm.Migrations{
		Lock:    "'" + lock + "'",
		Applied: "SELECT GROUP_CONCAT(version, dirty) FROM schema_migrations",
		Resumes: true,
		Up: func(ctx context.Context, p *livepool.Pool, between func(int)) error {
			// golang-migrate reads ahead.
			then := func(applied int) func() {
				return func() {
					labtest.Eventually(t, "the migrations before are applied", func() bool {
						var version int
						err := p.QueryRow("SELECT version FROM schema_migrations WHERE NOT dirty").Scan(&version)
						return err == nil && version == applied
					})
					between(applied)
				}
			}
			return up(ctx, p, slowFiles{migrations, map[string]func(){"2": then(1), "3": then(2)}})
		},
	})
}
