package main

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/examples/internal/storm"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

const (
	insertItem = "INSERT INTO items (v, big, note, at) VALUES (?, ?, ?, ?)"
	findItems  = "SELECT id, v, big, note, at FROM items WHERE v = ?"
)

// handle is what sql.DB and sql.Tx have in common.
type handle interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// plainDB is database/sql, under which the driver is traced.
type plainDB struct{ handle }

func (f plainDB) Insert(ctx context.Context, i *storm.Item) error {
	_, err := f.ExecContext(ctx, insertItem, i.V, i.Big, i.Note, i.At)
	return err
}

func (f plainDB) Find(ctx context.Context, v int64) ([]storm.Item, error) {
	rows, err := f.QueryContext(ctx, findItems, v)
	if err != nil {
		return nil, err
	}
	return storm.Scan(rows)
}

func (f plainDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	return storm.Transaction(ctx, f.handle, func(tx *sql.Tx) error { return fn(plainDB{tx}) })
}

// preparedDB prepares each statement.
type preparedDB struct{ handle }

func (f preparedDB) Insert(ctx context.Context, i *storm.Item) error {
	stmt, err := f.PrepareContext(ctx, insertItem)
	if err != nil {
		return err
	}
	defer stmt.Close()
	_, err = stmt.ExecContext(ctx, i.V, i.Big, i.Note, i.At)
	return err
}

func (f preparedDB) Find(ctx context.Context, v int64) ([]storm.Item, error) {
	stmt, err := f.PrepareContext(ctx, findItems)
	if err != nil {
		return nil, err
	}
	defer stmt.Close()
	rows, err := stmt.QueryContext(ctx, v)
	if err != nil {
		return nil, err
	}
	return storm.Scan(rows)
}

func (f preparedDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	return storm.Transaction(ctx, f.handle, func(tx *sql.Tx) error { return fn(preparedDB{tx}) })
}

func TestOtelsql(t *testing.T) {
	plain := storm.OnDB("plain", func(_ context.Context, db *sql.DB) (storm.DB, error) { return plainDB{db}, nil })
	prepared := storm.OnDB("prepared", func(_ context.Context, db *sql.DB) (storm.DB, error) { return preparedDB{db}, nil })
	plain.Wrap = Trace(sdk.NewTracerProvider())
	prepared.Wrap = plain.Wrap
	storm.Test(t, "otelsql", run, plain, prepared)
}

// Each attempt of a unit has its spans, below the caller's; nothing else has one.
func TestSpansAreTheCallers(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	spans := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))
	cfg, err := livepool.ParseDSN(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	cfg.Logger, cfg.Wrap, cfg.KeepAlive = labtest.DiscardLogger, Trace(provider), 20*time.Millisecond
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Exec("CREATE TABLE t (v INT)"); err != nil {
		t.Fatal(err)
	}
	ctx, caller := provider.Tracer("the test").Start(t.Context(), "caller")
	attempts := 0
	err = p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		attempts = s.Attempt()
		var id int
		if err := s.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
			return err
		}
		if attempts == 1 {
			if _, err := p.Exec(fmt.Sprint("KILL ", id)); err != nil { // without a context, so without a span
				return err
			}
		}
		_, err := s.ExecContext(ctx, "INSERT INTO t VALUES (1)")
		return err
	})
	caller.End()
	if err != nil || attempts != 2 {
		t.Fatalf("%d attempts: %v", attempts, err)
	}
	labtest.Eventually(t, "idle connections are pinged", func() bool { return p.Stats().KeptAlive > 0 })
	found := map[string]int{}
	for _, span := range spans.Ended() {
		found[span.Name()]++
		if span.SpanContext().TraceID() != caller.SpanContext().TraceID() {
			t.Errorf("%s is not of the caller's trace", span.Name())
		}
	}
	t.Log(found)
	if found["sql.conn.begin_tx"] != 2 || found["sql.conn.query"] != 2 || found["sql.tx.commit"] != 1 || found["sql.conn.ping"] != 0 {
		t.Errorf("the spans are %v, want a transaction and a query of each attempt, and one commit", found)
	}
}
