package livepoolotel_test

import (
	"fmt"

	"github.com/livepool/livepool"
	livepoolotel "github.com/livepool/livepool/otel"
)

func Example() {
	db, unregister, err := open("app:secret@tcp(db:3306)/shop?pool_size=20&pool_max_overflow=0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	defer unregister()
	fmt.Println(db.Stats().MaxOpenConnections)
	// Output: 20
}

// open opens a pool that tells the global providers.
func open(dsn string) (db *livepool.Pool, unregister func() error, err error) {
	cfg, err := livepool.ParseDSN(dsn)
	if err != nil {
		return nil, nil, err
	}
	t, err := livepoolotel.New("shop")
	if err != nil {
		return nil, nil, err
	}
	cfg.Tracer = t
	db, err = livepool.OpenConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	registration, err := t.Watch(db)
	if err != nil {
		db.Close()
		return nil, nil, err
	}
	return db, registration.Unregister, nil
}
