package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/klauspost/compress/gzip"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"
)

const (
	piecePages = 16384 // of 8 KiB: 128 MiB
	partSize   = 16 << 20
	readBuffer = 128 << 10 // as in Sluice
	pipeBuffer = 1 << 20   // without it every small write of gzip would pass through the pipe
)

// Moved is the result. Bytes are of NDJSON.
type Moved struct {
	Bytes     int64   `json:"bytes"`
	Resources int64   `json:"resources"`
	Seconds   float64 `json:"seconds"`
}

// piece is a range of pages of a table. With whole tables, most streams would be idle at the end.
type piece struct {
	table    string
	from, to int64
}

// These settings are the fastest of those that were tried: 1 to 6 streams, pieces of 64 to 256 MiB, with and without
// payload signatures, with and without a buffer before the pipe.

// move puts every resource of the database into the bucket that the S3 URL names (http://key:secret@host/bucket).
func move(ctx context.Context, database, s3 string, streams int) (Moved, error) {
	cfg, err := pgxpool.ParseConfig(database)
	if err != nil {
		return Moved{}, errors.New("CEILING_DATABASE is not the URL of a PostgreSQL database")
	}
	cfg.MaxConns = int32(streams)
	cfg.ConnConfig.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(bufio.NewReaderSize(r, readBuffer), w)
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return Moved{}, err
	}
	defer pool.Close()
	place, err := url.Parse(s3)
	if err != nil || place.User == nil {
		return Moved{}, errors.New("CEILING_S3 is not http://key:secret@host/bucket")
	}
	secret, _ := place.User.Password()
	store, err := minio.New(place.Host, &minio.Options{Creds: credentials.NewStaticV4(place.User.Username(), secret, "")})
	if err != nil {
		return Moved{}, err
	}
	pieces, err := cut(ctx, pool)
	if err != nil {
		return Moved{}, err
	}
	var bytes, resources atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(streams)
	for n, p := range pieces {
		group.Go(func() error {
			read, write := io.Pipe()
			go func() { write.CloseWithError(p.copy(ctx, pool, write, &bytes, &resources)) }()
			_, err := store.PutObject(ctx, strings.Trim(place.Path, "/"), fmt.Sprintf("ceiling/%03d", n), read, -1,
				minio.PutObjectOptions{PartSize: partSize, DisableContentSha256: true})
			return errors.Join(err, read.CloseWithError(err))
		})
	}
	err = group.Wait()
	return Moved{Bytes: bytes.Load(), Resources: resources.Load()}, err
}

// cut lists the pieces of all tables, the largest tables first.
func cut(ctx context.Context, pool *pgxpool.Pool) ([]piece, error) {
	rows, err := pool.Query(ctx, `SELECT relname, pg_relation_size(oid) / 8192 FROM pg_class
		WHERE relname LIKE 'resource\_%' AND relkind = 'r' AND pg_relation_size(oid) > 0 ORDER BY 2 DESC`)
	if err != nil {
		return nil, err
	}
	var pieces []piece
	var table string
	var pages int64
	_, err = pgx.ForEachRow(rows, []any{&table, &pages}, func() error {
		n := (pages + piecePages - 1) / piecePages
		for i := range n {
			pieces = append(pieces, piece{table: table, from: pages * i / n, to: pages * (i + 1) / n})
		}
		return nil
	})
	return pieces, err
}

// copy writes the piece as gzipped NDJSON.
func (p piece) copy(ctx context.Context, pool *pgxpool.Pool, to io.Writer, bytes, resources *atomic.Int64) error {
	output := bufio.NewWriterSize(to, pipeBuffer)
	zip, err := gzip.NewWriterLevel(output, gzip.BestSpeed)
	if err != nil {
		return err
	}
	lines := bufio.NewWriterSize(zip, 64<<10)
	rows, err := pool.Query(ctx, fmt.Sprintf("SELECT body FROM %s WHERE ctid >= '(%d,0)' AND ctid < '(%d,0)'",
		pgx.Identifier{p.table}.Sanitize(), p.from, p.to))
	if err != nil {
		return err
	}
	defer rows.Close()
	var written, count int64
	for rows.Next() {
		body := rows.RawValues()[0]
		written, count = written+int64(len(body))+1, count+1
		if _, err := lines.Write(body); err != nil {
			return err
		}
		if err := lines.WriteByte('\n'); err != nil {
			return err
		}
	}
	bytes.Add(written)
	resources.Add(count)
	return errors.Join(rows.Err(), lines.Flush(), zip.Close(), output.Flush())
}
