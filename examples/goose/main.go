// Command goose is goose on livepool, with MySQL's named lock on the one connection that goose
// holds from the first migration to the last.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/goose
//
// It leaves the tables example_accounts, example_currencies and goose_db_version.
package main

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"

	"github.com/pressly/goose/v3"

	"github.com/livepool/livepool"
)

//go:embed migrations
var migrations embed.FS

func main() {
	if err := run(context.Background(), os.Getenv("DSN")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dsn string) error {
	pool, err := livepool.Open(dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := up(ctx, pool); err != nil {
		return err
	}
	fmt.Println("the schema is up to date")
	return nil
}

// up applies what is missing. It does not begin again by itself if the connection is lost: goose
// notes a migration after it has run, so that nobody can tell whether the one under way did.
func up(ctx context.Context, pool *livepool.Pool, options ...goose.ProviderOption) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	options = append(options, goose.WithSessionLocker(namedLock{}))
	provider, err := goose.NewProvider(goose.DialectMySQL, pool.DB, files, options...)
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// namedLock keeps two runs on one database apart; goose itself has a lock for Postgres only. It
// ends with its connection at the latest, which livepool closes when it is returned.
type namedLock struct{}

// lockName is an expression: named locks are the server's, and not a database's, and have at most
// 64 characters.
const lockName = "SHA2(CONCAT(DATABASE(), '.goose'), 224)"

func (namedLock) SessionLock(ctx context.Context, conn *sql.Conn) error {
	var got sql.NullBool
	if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK("+lockName+", 60)").Scan(&got); err != nil {
		return err
	}
	if !got.Bool {
		return errors.New("another run of the migrations has not ended for a minute")
	}
	return nil
}

func (namedLock) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, "DO RELEASE_LOCK("+lockName+")")
	return err
}
