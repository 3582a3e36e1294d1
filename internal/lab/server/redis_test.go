package server_test

import (
	"bufio"
	"net"
	"os"
	"testing"

	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A Redis keeps what it is told, and leaves nothing behind.
func TestRedis(t *testing.T) {
	var socket string
	t.Run("runs", func(t *testing.T) {
		r := servertest.RunRedis(t)
		socket = r.Socket()
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("SET job 17\r\nINCR job\r\n")); err != nil {
			t.Fatal(err)
		}
		answers := bufio.NewReader(conn)
		for _, want := range []string{"+OK\r\n", ":18\r\n"} {
			if answer, err := answers.ReadString('\n'); answer != want {
				t.Errorf("%q, %v; want %q", answer, err, want)
			}
		}
	})
	if socket == "" {
		t.Skip("there is no Redis")
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket of a Redis that was closed: %v", err)
	}
}
