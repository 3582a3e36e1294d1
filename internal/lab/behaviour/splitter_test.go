package behaviour_test

// A proxy that sends reads to one server and writes to another: what a thread of
// the one does says nothing of the other's.

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/loopback"
	"github.com/livepool/livepool/internal/lab/server"
)

// splitter is such a proxy, before one server by two connections. It greets with
// an id of its own. It cannot answer a challenge: its users have no password.
type splitter struct {
	net.Listener
	upstream string
	wg       sync.WaitGroup
}

func openSplitter(t testing.TB, s *server.Server) *splitter {
	t.Helper()
	l, err := loopback.Listen()
	if err != nil {
		t.Fatal(err)
	}
	sp := &splitter{Listener: l, upstream: s.Addr()}
	sp.wg.Go(func() {
		for id := uint32(1 << 30); ; id++ {
			client, err := l.Accept()
			if err != nil {
				return
			}
			sp.wg.Go(func() { sp.serve(client, id) })
		}
	})
	t.Cleanup(func() { l.Close(); sp.wg.Wait() })
	return sp
}

// packet reads one packet of the protocol.
func packet(from io.Reader) ([]byte, error) {
	p := make([]byte, 4)
	if _, err := io.ReadFull(from, p); err != nil {
		return nil, err
	}
	p = append(p, make([]byte, int(p[0])|int(p[1])<<8|int(p[2])<<16)...)
	_, err := io.ReadFull(from, p[4:])
	return p, err
}

func (sp *splitter) serve(client net.Conn, id uint32) {
	defer client.Close()
	var backends [2]net.Conn // for reads, for writes
	for i := range backends {
		b, err := net.Dial("tcp", sp.upstream)
		if err != nil {
			return
		}
		defer b.Close()
		backends[i] = b
	}
	var login []byte
	for i, b := range backends {
		greeting, err := packet(b)
		if err != nil {
			return
		}
		if i == 0 {
			at := 5 + bytes.IndexByte(greeting[5:], 0) + 1
			binary.LittleEndian.PutUint32(greeting[at:], id)
			client.Write(greeting)
			if login, err = packet(client); err != nil {
				return
			}
		}
		b.Write(login)
		welcome, err := packet(b)
		if err != nil {
			return
		}
		if i == 0 {
			client.Write(welcome)
		}
	}
	for _, b := range backends {
		sp.wg.Go(func() { io.Copy(client, b); client.Close() })
	}
	for {
		p, err := packet(client)
		if err != nil {
			return
		}
		to := backends[1]
		if bytes.HasPrefix(bytes.ToUpper(p[5:]), []byte("SELECT")) {
			to = backends[0]
		}
		to.Write(p)
	}
}

func TestStatementBehindASplitterIsLeftInPeace(t *testing.T) {
	t.Parallel()
	onEachServer(t, func(t *testing.T, s *server.Server) {
		for _, q := range []string{"CREATE USER split@'127.0.0.1' IDENTIFIED BY ''", "GRANT ALL ON test.* TO split@'127.0.0.1'"} {
			if err := s.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		dsn := "split@tcp(" + openSplitter(t, s).Addr().String() + ")/test"
		var all parallel
		defer all.wg.Wait()
		last := 9
		for on, run := range queryers {
			last++
			row := last
			all.run(t, on, func(t *testing.T) {
				p := open(t, dsn, "pool_stall_after=500ms")
				release := holdRow(t, s, row)
				defer time.AfterFunc(4*time.Second, release).Stop()
				err := run(t.Context(), p, func(db queryer) error {
					_, err := db.ExecContext(context.Background(), "UPDATE account SET balance = balance + 1 WHERE id = ?", row)
					return err
				})
				st, applied := p.Stats(), balance(t, s, row)
				t.Logf("%d looks, Stalled %d, applied %d times: %v", st.StallChecks, st.Stalled, applied, err)
				if err != nil || st.Stalled != 0 || st.StallChecks == 0 || applied != 1 {
					t.Error("want it left in peace, with looks")
				}
			})
		}
	})
}
