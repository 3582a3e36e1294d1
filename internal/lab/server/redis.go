package server

// This file runs a private Redis, for queues that keep their jobs in one. It is fetched and
// started as the database servers are, and listens on a unix socket only: so it needs no port
// that is free.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

var redisPackages = Packages{Name: "redis", Suite: "bookworm", Names: "redis-server", Size: "23 MB"}

// A Redis is a private Redis. What is in it is in memory only.
type Redis struct {
	dir  string
	lock *os.File // on dir, as of a Server
	proc *process
}

// StartRedis starts a Redis and returns when it takes commands. The context bounds the start only. End it with Close.
func StartRedis(ctx context.Context) (*Redis, error) {
	programs, err := FetchPrograms(ctx, redisPackages)
	if err != nil {
		return nil, err
	}
	r := &Redis{}
	if r.dir, r.lock, err = makeDir(); err != nil {
		return nil, err
	}
	if err := r.start(ctx, programs); err != nil {
		err = fmt.Errorf("Redis does not start: %w\n%s", err, r.Log())
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Redis) start(ctx context.Context, programs *Programs) error {
	log, err := os.Create(r.logFile())
	if err != nil {
		return err
	}
	defer log.Close()
	argv := programs.Command("usr/bin/redis-server", "--port", "0", "--unixsocket", r.Socket(), "--dir", r.dir, "--save", "").Args
	if r.proc, err = startProcess(argv, nil, log); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		if !r.proc.running() {
			return false, fmt.Errorf("it ended: %v", r.proc.err)
		}
		return r.answers(), nil
	})
}

// answers sends a PING.
func (r *Redis) answers() bool {
	conn, err := net.DialTimeout("unix", r.Socket(), time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	answer := make([]byte, len("+PONG"))
	_, err = conn.Write([]byte("PING\r\n"))
	n, readErr := conn.Read(answer)
	return err == nil && readErr == nil && string(answer[:n]) == "+PONG"
}

// Close ends the Redis and removes all that it wrote. It may be called more than once.
func (r *Redis) Close() error {
	if r.proc != nil {
		r.proc.kill()
	}
	err := os.RemoveAll(r.dir)
	r.lock.Close()
	return err
}

// Socket is the path of its unix socket.
func (r *Redis) Socket() string { return filepath.Join(r.dir, "sock") }

// URI is for clients, which call it a redis-socket.
func (r *Redis) URI() string { return "redis-socket://" + r.Socket() }

// Log is the end of what it had to say, for the output of a test that failed.
func (r *Redis) Log() string { return tail(r.logFile()) }

func (r *Redis) logFile() string { return filepath.Join(r.dir, "redis.log") }
