package server

// This file runs a private Redis, for queues that keep their jobs in one. It is fetched and
// started as the database servers are, and listens on a unix socket only: so it needs no port
// that is free.

import (
	"context"
	"net"
	"path/filepath"
	"time"
)

var redisPackages = Packages{Name: "redis", Suite: "bookworm", Names: "redis-server", Size: "23 MB"}

// A Redis is a private Redis. What is in it is in memory only.
type Redis struct{ daemon }

// StartRedis starts a Redis and returns when it takes commands. The context bounds the start only. End it with Close.
func StartRedis(ctx context.Context) (*Redis, error) {
	programs, err := FetchPrograms(ctx, redisPackages)
	if err != nil {
		return nil, err
	}
	d, err := makeDaemon("Redis")
	if err != nil {
		return nil, err
	}
	r := &Redis{d}
	argv := programs.Command("usr/bin/redis-server", "--port", "0", "--unixsocket", r.Socket(), "--dir", r.dir, "--save", "").Args
	if err := r.start(ctx, argv, r.answers); err != nil {
		return nil, r.startError(err)
	}
	return r, nil
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

// Socket is the path of its unix socket.
func (r *Redis) Socket() string { return filepath.Join(r.dir, "sock") }

// URI is for clients, which call it a redis-socket.
func (r *Redis) URI() string { return "redis-socket://" + r.Socket() }
