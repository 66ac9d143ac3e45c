package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

const (
	slowClients = 500
	slowRate    = 20_000           // bytes a second of each
	slowFor     = 30 * time.Second // at least, after all have begun
	slowBuffer  = 16 << 10         // of a client's connection, so that the kernel does not take a whole file
)

// slowFigures are of many slow downloads at once through one API: half of them of gzip, half of text.
type slowFigures struct {
	Clients int       `json:"clients"`
	Before  useFigure `json:"api_before"`
	During  useFigure `json:"api_during"`
	After   useFigure `json:"api_after"`
	Peak    float64   `json:"api_peak_mib"`
	Alone   []float64 `json:"fast_alone_mb_per_second"` // gzipped bytes
	Beside  []float64 `json:"fast_beside_mb_per_second"`
	Ratio   []float64 `json:"ratio_of_fast"`
	Begin   float64   `json:"all_begun_seconds"`     // until every slow client has its first bytes
	Each    float64   `json:"slow_bytes_per_second"` // of each client, from then on
}

type useFigure struct {
	Memory      float64 `json:"resident_mib"`
	Goroutines  float64 `json:"goroutines"`
	Descriptors float64 `json:"descriptors"`
}

// downloads measures the API during many slow downloads, and a fast one beside them.
func (b *bench) downloads(ctx context.Context) error {
	d, err := b.deployLargest(ctx, 1)
	if err != nil {
		return err
	}
	defer d.stop()
	_, manifest, err := d.manifest(ctx, "all")
	if err != nil {
		return err
	}
	var files []string
	for _, item := range manifest.Output {
		files = append(files, item.URL)
	}
	f := &b.report.Downloads
	f.Clients = slowClients
	fast := func(to *[]float64) error {
		for round := range b.options.rounds + 1 {
			rate, err := download(ctx, files, "gzip", d.get)
			if err != nil {
				return err
			}
			if round > 0 { // the first fills caches
				*to = append(*to, rate)
			}
		}
		return nil
	}
	if err := fast(&f.Alone); err != nil {
		return err
	}
	if f.Before, err = d.api.use(ctx); err != nil {
		return err
	}
	large := slices.MaxFunc(manifest.Output, func(a, b bulkclient.Item) int { return cmp.Compare(lines(a), lines(b)) })
	if err := d.besideSlow(ctx, large.URL, f, func() error { return fast(&f.Beside) }); err != nil {
		return err
	}
	for i := range f.Beside {
		f.Ratio = append(f.Ratio, f.Beside[i]/f.Alone[i])
	}
	if err := pause(ctx, 5*time.Second); err != nil { // the API notices that the clients have gone
		return err
	}
	f.After, err = d.api.use(ctx)
	return err
}

// besideSlow calls fast once all slow clients have begun to download the file, and measures the API before it ends them.
func (d *deployment) besideSlow(ctx context.Context, url string, f *slowFigures, fast func() error) (err error) {
	slow, stop := context.WithCancel(ctx)
	group, slow := errgroup.WithContext(slow)
	defer func() {
		stop()
		err = errors.Join(err, group.Wait())
	}()
	var begun, read atomic.Int64
	began := time.Now()
	for i := range slowClients {
		group.Go(func() error { return d.slow(slow, url, []string{"gzip", "identity"}[i%2], &begun, &read) })
	}
	for begun.Load() < slowClients {
		if err := pause(slow, pollEvery); err != nil {
			return err
		}
	}
	f.Begin = time.Since(began).Seconds()
	before := read.Load()
	began = time.Now()
	if err := fast(); err != nil {
		return err
	}
	if err := pause(slow, time.Until(began.Add(slowFor))); err != nil {
		return err
	}
	f.Each = float64(read.Load()-before) / time.Since(began).Seconds() / slowClients
	f.Peak = d.api.PeakMemory()
	f.During, err = d.api.use(ctx)
	return err
}

// lines is how many lines a file has, 0 if the manifest does not say so.
func lines(file bulkclient.Item) int64 {
	if file.Count == nil {
		return 0
	}
	return *file.Count
}

// slow downloads a file at slowRate until the context ends.
func (d *deployment) slow(ctx context.Context, url, encoding string, begun, read *atomic.Int64) error {
	dialer := &net.Dialer{}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if tcp, is := conn.(*net.TCPConn); is {
			err = errors.Join(err, tcp.SetReadBuffer(slowBuffer))
		}
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	resp, err := d.getBy(ctx, &http.Client{Transport: transport}, url, encoding)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("slow download: %s", resp.Status)
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for first := true; ; first = false {
		n, err := io.CopyN(io.Discard, resp.Body, slowRate)
		read.Add(n)
		if first {
			begun.Add(1)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("slow download: %w", err) // also when the file ends: it is too small
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// use returns what the service uses.
func (s *service) use(ctx context.Context) (useFigure, error) {
	metrics, err := s.metrics(ctx)
	return useFigure{
		Memory:     metrics["process_resident_memory_bytes"] / (1 << 20),
		Goroutines: metrics["go_goroutines"], Descriptors: metrics["process_open_fds"],
	}, err
}
