package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// ErrDenied is a refusal of the service. It is an outage (export.ErrUnavailable) if everything is refused, as after rotated
// credentials or with a wrong clock, which an operator repairs: then Check fails too.
var ErrDenied = errors.New("access denied")

// failure maps errors of minio-go to those in the package comment.
func failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ended := ctx.Err(); ended != nil {
		if errors.Is(context.Cause(ctx), errSilent) { // not a deadline of the caller
			return errSilent
		}
		return ended
	}
	var refusal minio.ErrorResponse
	if errors.As(err, &refusal) {
		switch {
		case refusal.Code == minio.NoSuchKey, refusal.Code == minio.NoSuchUpload:
			return fmt.Errorf("%s: %w", refusal.Code, export.ErrNotFound)
		case refusal.Code == minio.NoSuchBucket:
			// The wrong store, or one that is not set up yet; not a missing object.
			return fmt.Errorf("%s: %w", refusal.Code, export.ErrUnavailable)
		case refusal.StatusCode == http.StatusUnauthorized, refusal.StatusCode == http.StatusForbidden,
			strings.HasPrefix(refusal.Code, "ExpiredToken"), refusal.Code == "InvalidToken":
			return fmt.Errorf("%s (status %d): %w: %w", refusal.Code, refusal.StatusCode, ErrDenied, export.ErrUnavailable)
		case refusal.StatusCode >= 500 && refusal.StatusCode != http.StatusNotImplemented, // permanent
			refusal.StatusCode == http.StatusTooManyRequests,
			strings.HasPrefix(refusal.Code, "SlowDown"), refusal.Code == "RequestTimeout":
			return fmt.Errorf("%s (status %d): %w", refusal.Code, refusal.StatusCode, export.ErrUnavailable)
		default:
			return fmt.Errorf("%s (status %d): %w", refusal.Code, refusal.StatusCode, err)
		}
	}
	var request *url.Error
	if errors.As(err, &request) {
		// Its text contains the URL with its query. So does the inner error when the connection was closed.
		err = request.Err
		if strings.Contains(err.Error(), request.URL) {
			err = errors.New("the store closed the connection")
		}
		return fmt.Errorf("%w: %w", export.ErrUnavailable, err)
	}
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", export.ErrUnavailable, err)
	}
	return err
}

// refused reports whether the store rejected the request, so that nothing has changed. After any other error the
// request may have been executed: the response may be lost, and the retry of a successful request returns NoSuchUpload.
func refused(err error) bool {
	var refusal minio.ErrorResponse
	return errors.As(err, &refusal) && refusal.Code != minio.NoSuchUpload &&
		(refusal.StatusCode >= 400 && refusal.StatusCode < 500 || refusal.StatusCode == http.StatusNotImplemented)
}
