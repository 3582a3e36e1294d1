// Command otelsql is otelsql in livepool: Trace, which is to be copied, is its Config.Wrap. So a
// span is what was sent to the server, of a unit that was run again that of each attempt, and it
// is a child of the caller's.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/otelsql
//
// It prints the spans. It leaves a table example_accounts, and livepool_commits.
package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/XSAM/otelsql"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/livepool/livepool"
)

const createAccounts = "CREATE TABLE IF NOT EXISTS example_accounts (id BIGINT AUTO_INCREMENT PRIMARY KEY, balance BIGINT NOT NULL)"

func main() {
	if err := run(context.Background(), os.Getenv("DSN")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dsn string) error {
	exporter, err := stdouttrace.New(stdouttrace.WithPrettyPrint())
	if err != nil {
		return err
	}
	provider := sdk.NewTracerProvider(sdk.WithSyncer(exporter))
	cfg, err := livepool.ParseDSN(dsn)
	if err != nil {
		return err
	}
	cfg.Wrap = Trace(provider)
	pool, err := livepool.OpenConfig(cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	_, err = pool.ExecContext(ctx, createAccounts)
	if err := errors.Join(err, pool.CreateCommitTable(ctx)); err != nil {
		return err
	}
	ctx, span := provider.Tracer("shop").Start(ctx, "open an account")
	defer span.End()
	id, err := livepool.Do(ctx, pool, func(ctx context.Context, s *livepool.Session) (int64, error) {
		res, err := s.ExecContext(ctx, "INSERT INTO example_accounts (balance) VALUES (100)")
		if err != nil {
			return 0, err
		}
		return res.LastInsertId()
	}, livepool.VerifyCommit())
	if err != nil {
		return err
	}
	fmt.Printf("account %d is opened\n", id)
	return nil
}

// Trace is for livepool's Config.Wrap. There are no spans for what belongs to no span of the
// program, such as what livepool does in the background, and none for checkouts, most of which
// send nothing.
func Trace(provider trace.TracerProvider) func(driver.Connector) driver.Connector {
	return func(c driver.Connector) driver.Connector {
		traced := otelsql.WrapDriver(opener{c}, otelsql.WithTracerProvider(provider), otelsql.WithSpanOptions(otelsql.SpanOptions{
			DisableErrSkip: true, OmitConnResetSession: true,
			SpanFilter: func(ctx context.Context, _ otelsql.Method, _ string, _ []driver.NamedValue) bool {
				return trace.SpanContextFromContext(ctx).IsValid()
			},
		}))
		c, err := traced.(driver.DriverContext).OpenConnector("")
		if err != nil {
			panic(err) // opener has none
		}
		return c
	}
}

// opener is a connector as a driver, because otelsql has no function that takes the one and
// returns it.
type opener struct{ c driver.Connector }

func (o opener) Open(string) (driver.Conn, error) { return o.c.Connect(context.Background()) }

func (o opener) OpenConnector(string) (driver.Connector, error) { //nolint:unparam // driver.DriverContext has it so
	return o.c, nil
}
