package main

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/examples/internal/storm"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
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
			// golang-migrate reads ahead. That it has had the answer to its COMMIT is seen in its
			// connection: others see a commit before the server's log has it, which a kill may lose.
			then := func(applied int) func() {
				return func() {
					labtest.Eventually(t, "the migrations before are applied", func() bool {
						var version int
						err := p.QueryRow(`SELECT version FROM schema_migrations JOIN information_schema.processlist ON id = IS_USED_LOCK(?)
							WHERE NOT dirty AND command = 'Sleep'`, lock).Scan(&version)
						return err == nil && version == applied
					})
					between(applied)
				}
			}
			return up(ctx, p, slowFiles{migrations, map[string]func(){"2": then(1), "3": then(2)}})
		},
	})
}

// A migration whose connection is lost may have run in part: neither this run nor the next
// sends it again.
func TestConnectionLostInAMigration(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p, err := livepool.Open(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	files := fstest.MapFS{"migrations/1_slow.up.sql": {Data: []byte("SELECT SLEEP(120)")}}
	ended := make(chan error, 1)
	go func() { ended <- up(t.Context(), p, files) }()
	labtest.Eventually(t, "the migration runs", func() bool {
		list, err := s.Processes()
		return err == nil && slices.ContainsFunc(list, func(p server.Process) bool { return p.Info == "SELECT SLEEP(120)" })
	})
	if err := s.KillConnections(); err != nil {
		t.Fatal(err)
	}
	var dirty migrate.ErrDirty
	if err := <-ended; err == nil || errors.As(err, &dirty) || !strings.Contains(err.Error(), "migration failed") {
		t.Errorf("the run says %v, want why the migration has failed", err)
	}
	if err := up(t.Context(), p, files); !errors.As(err, &dirty) || dirty.Version != 1 {
		t.Errorf("the next run says %v, want that version 1 is dirty", err)
	}
}
