// embedded.go builds and starts the embedded server, the last resort on a
// machine where no MariaDB or MySQL can be had. The server itself is a module
// of its own, in embedded/.

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/go-sql-driver/mysql"
)

func embeddedSite(ctx context.Context, w io.Writer) (*site, error) {
	dir, err := os.MkdirTemp("", "livepool-bench-")
	if err != nil {
		return nil, err
	}
	program := filepath.Join(dir, "embedded")
	fmt.Fprintln(w, "building the embedded server; the first time this takes a minute or two")
	if err := buildEmbedded(ctx, program); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	cfg, stop, err := startEmbedded(ctx, program)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return &site{
		title:     "the embedded go-mysql-server",
		mysql:     cfg,
		firstLook: embeddedCaveat,
		close:     func() error { return errors.Join(stop(), os.RemoveAll(dir)) },
	}, nil
}

// buildEmbedded builds the nested module; its sources are beside this file.
func buildEmbedded(ctx context.Context, program string) error {
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", program, ".")
	cmd.Dir = filepath.Join(filepath.Dir(here), "embedded")
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the embedded server: %w\n%s", err, out)
	}
	return nil
}

// startEmbedded starts the program, which ends when its standard input does.
func startEmbedded(ctx context.Context, program string) (_ *mysql.Config, stop func() error, err error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(program, "-addr", addr)
	cmd.Stderr = io.Discard // a line for each connection that ends
	leash, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	stop = func() error {
		leash.Close()
		return cmd.Wait()
	}
	cfg := mysql.NewConfig()
	cfg.User, cfg.Net, cfg.Addr, cfg.DBName = "root", "tcp", addr, "test"
	if err := awaitServer(ctx, cfg); err != nil {
		stop()
		return nil, nil, fmt.Errorf("the embedded server does not answer: %w", err)
	}
	return cfg, stop, nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// awaitServer waits until the server answers, for at most half a minute.
func awaitServer(ctx context.Context, cfg *mysql.Config) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	db, err := sql.Open("mysql", cfg.FormatDSN())
	if err != nil {
		return err
	}
	defer db.Close()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
