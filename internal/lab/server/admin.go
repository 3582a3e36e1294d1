package server

// This file is what one can ask of a running server: statements and settings as root, and a
// look at its connections. Each call has a connection of its own over the unix socket and
// closes it, so that none of ours is ever among those that a test counts.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/go-sql-driver/mysql"
)

// A Process is a client's connection as the server sees it.
type Process struct {
	ID      uint64
	User    string
	Host    string // with the client's port
	DB      string
	Command string        // Sleep, Query, ...
	Time    time.Duration // since the state began, in whole seconds
	State   string
	Info    string // the statement, if one runs
}

// admin lends f a connection as root.
func (s *Server) admin(ctx context.Context, f func(context.Context, *sql.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience/4)
	defer cancel()
	cfg := mysql.NewConfig()
	cfg.User, cfg.Net, cfg.Addr, cfg.DBName = "root", "unix", s.Socket(), Database
	cfg.InterpolateParams = true
	cfg.MultiStatements = true
	cfg.Logger = &mysql.NopLogger{} // a server on its way up or down is no news
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(ctx, conn)
}

func (s *Server) ping(ctx context.Context) error {
	return s.admin(ctx, func(ctx context.Context, c *sql.Conn) error { return c.PingContext(ctx) })
}

// Exec executes a statement, or several separated by semicolons, as root in Database.
func (s *Server) Exec(query string, args ...any) error {
	return s.exec(context.Background(), query, args...)
}

func (s *Server) exec(ctx context.Context, query string, args ...any) error {
	return s.admin(ctx, func(ctx context.Context, c *sql.Conn) error {
		_, err := c.ExecContext(ctx, query, args...)
		return err
	})
}

// QueryRow scans the single row of a query as root in Database into dest.
func (s *Server) QueryRow(query string, dest ...any) error {
	return s.queryRow(context.Background(), query, nil, dest...)
}

func (s *Server) queryRow(ctx context.Context, query string, args []any, dest ...any) error {
	return s.admin(ctx, func(ctx context.Context, c *sql.Conn) error {
		return c.QueryRowContext(ctx, query, args...).Scan(dest...)
	})
}

// pairs returns the rows of a query that gives names and values.
func (s *Server) pairs(ctx context.Context, query string) (pairs map[string]string, err error) {
	err = s.admin(ctx, func(ctx context.Context, c *sql.Conn) error {
		rows, err := c.QueryContext(ctx, query)
		if err != nil {
			return err
		}
		defer rows.Close()
		pairs = map[string]string{}
		for rows.Next() {
			var name, value string
			if err := rows.Scan(&name, &value); err != nil {
				return err
			}
			pairs[name] = value
		}
		return rows.Err()
	})
	return pairs, err
}

// SetGlobal sets a global variable.
func (s *Server) SetGlobal(name string, value any) error {
	return s.Exec("SET GLOBAL "+name+" = ?", value)
}

// SetReadOnly makes the server refuse writes (error 1290), as a replica does, from User and
// AppUser alike.
func (s *Server) SetReadOnly(on bool) error { return s.setReadOnly(context.Background(), on) }

// setReadOnly bounds what SetReadOnly waits for, which is every statement that is writing and
// every LOCK TABLES: new writes wait behind it, and it is granted even when nobody waits for it
// any more. So it is the server that gives up, with error 1205.
func (s *Server) setReadOnly(ctx context.Context, on bool) error {
	name := "read_only"
	if s.Kind() == MySQL {
		name = "super_read_only" // turns read_only on as well
		if !on {
			name = "read_only" // turns super_read_only off as well
		}
	}
	wait := patience / 6 // less than what admin has
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)-time.Second)
	}
	return s.exec(ctx, "SET SESSION lock_wait_timeout = ?; SET GLOBAL "+name+" = ?", max(1, int(wait.Seconds())), on)
}

// Processes lists the clients' connections: not the server's own threads, nor a replica's, nor
// root's, by which we ask and of which an earlier one may not have ended yet.
func (s *Server) Processes() (list []Process, err error) {
	err = s.admin(context.Background(), func(ctx context.Context, c *sql.Conn) error {
		rows, err := c.QueryContext(ctx, `
			SELECT id, user, host, COALESCE(db, ''), command, GREATEST(time, 0), COALESCE(state, ''), COALESCE(info, '')
			FROM information_schema.processlist
			WHERE user NOT IN ('root', '`+replUser+`', 'system user', 'event_scheduler') ORDER BY id`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var p Process
			var seconds int64
			if err := rows.Scan(&p.ID, &p.User, &p.Host, &p.DB, &p.Command, &seconds, &p.State, &p.Info); err != nil {
				return err
			}
			p.Time = time.Duration(seconds) * time.Second
			list = append(list, p)
		}
		return rows.Err()
	})
	return list, err
}

// KillConnections kills every connection of User and AppUser, as an administrator does, and
// returns when they are gone.
func (s *Server) KillConnections() error {
	list, err := s.Processes()
	if err != nil {
		return err
	}
	killed := map[uint64]bool{}
	for _, p := range list {
		if p.User != User && p.User != AppUser {
			continue
		}
		const noSuchThread = 1094
		var my *mysql.MySQLError
		if err := s.Exec(fmt.Sprintf("KILL %d", p.ID)); err != nil && !(errors.As(err, &my) && my.Number == noSuchThread) {
			return err
		}
		killed[p.ID] = true
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if list, err = s.Processes(); err != nil {
			return err
		}
		left := 0
		for _, p := range list {
			if killed[p.ID] {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d killed connections are still there", left)
		}
	}
}
