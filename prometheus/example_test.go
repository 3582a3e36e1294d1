package livepoolprom_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/livepool/livepool"
	livepoolprom "github.com/livepool/livepool/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The metrics of a pool, beside those of the rest of the program.
func Example() {
	cfg, err := livepool.ParseDSN("app:secret@tcp(db:3306)/shop?pool_size=20")
	if err != nil {
		panic(err)
	}
	metrics := livepoolprom.NewCollector("orders")
	cfg.Tracer = metrics
	db, err := livepool.OpenConfig(cfg)
	if err != nil {
		panic(err)
	}
	defer db.Close()
	metrics.Watch(db)

	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)
	metricsPage := promhttp.HandlerFor(registry, promhttp.HandlerOpts{}) // for http.Handle("/metrics", metricsPage)

	scrape := httptest.NewRecorder()
	metricsPage.ServeHTTP(scrape, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(scrape.Body.String()) {
		if strings.HasPrefix(line, "livepool_connections{") || strings.HasPrefix(line, "livepool_connections_max{") {
			fmt.Print(line)
		}
	}
	// Output:
	// livepool_connections{pool="orders",state="idle"} 0
	// livepool_connections{pool="orders",state="in_use"} 0
	// livepool_connections_max{pool="orders"} 30
}
