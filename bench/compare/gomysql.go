package compare

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"
)

// goMySQL is go-mysql's own pool. A context bounds only the wait for a connection: its
// statements take none, and the pool asks its user to say whether a connection is still
// good.
type goMySQL struct{ pool *client.Pool }

func openGoMySQL(_ context.Context, t target) (contender, error) {
	p, err := client.NewPoolWithOptions(net.JoinHostPort(t.host, t.port), t.user, t.password, t.database,
		client.WithPoolLimits(0, t.size, t.size), client.WithLogger(slog.Default()),
		client.WithNewPoolPingTimeout(10*time.Second))
	if err != nil {
		return nil, err
	}
	return &inProcess{name: "go-mysql-org/go-mysql", pool: &goMySQL{p}}, nil
}

// on lends f a connection, which is dropped after an error that is not the server's.
func (p *goMySQL) on(ctx context.Context, f func(*client.Conn) error) error {
	c, err := p.pool.GetConn(ctx)
	if err != nil {
		return err
	}
	err = f(c)
	var fromServer *gomysql.MyError
	if err != nil && !errors.As(err, &fromServer) {
		p.pool.DropConn(c)
		return err
	}
	p.pool.PutConn(c)
	return err
}

func (p *goMySQL) query(ctx context.Context, id int64) error {
	return p.on(ctx, func(c *client.Conn) error {
		r, err := c.Execute("SELECT v FROM bench_point WHERE id = ?", id)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = r.GetString(0, 0)
		return err
	})
}

func (p *goMySQL) exec(ctx context.Context) error {
	return p.on(ctx, func(c *client.Conn) error { return execute(c, "DO 1") })
}

func execute(c *client.Conn, query string, args ...any) error {
	r, err := c.Execute(query, args...)
	if err == nil {
		r.Close()
	}
	return err
}

func (p *goMySQL) transact(ctx context.Context, f func(context.Context, execFunc) error) error {
	return p.on(ctx, func(c *client.Conn) error {
		if err := c.Begin(); err != nil {
			return err
		}
		err := f(ctx, func(_ context.Context, query string, args ...any) error { return execute(c, query, args...) })
		if err != nil {
			if undone := c.Rollback(); undone != nil {
				return undone
			}
			return err
		}
		return c.Commit()
	})
}

func (p *goMySQL) recycle() bool { return false }

func (p *goMySQL) close() error {
	p.pool.Close()
	return nil
}
