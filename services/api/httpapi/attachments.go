package httpapi

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// attachment serves the content of an attachment of a completed job. It needs the scope of the resource that
// has the attachment, as its file does: a client that may read the resource needs no further one.
func (s *service) attachment(c *gin.Context) error {
	job, err := s.ownJob(c)
	if err != nil {
		return err
	}
	unit, name, offset, ok := export.ParseAttachmentName(c.Param("name"))
	if job.State != export.Completed || !ok {
		return notAvailable()
	}
	ctx := c.Request.Context()
	result, err := s.Jobs.Result(ctx, job.ID, unit)
	if err != nil && !errors.Is(err, export.ErrNotFound) {
		return fmt.Errorf("looking up an attachment of job %s: %w", job.ID, err)
	}
	at := slices.IndexFunc(result.Attachments, func(pack export.Pack) bool { return pack.Name == name })
	if at < 0 {
		return notAvailable()
	}
	pack := result.Attachments[at]
	if !principalOf(c).Scopes.MayRead(pack.Type) {
		return forbidden("The attachment is one of a type that this token may not read: " + pack.Type + ".")
	}
	found, begin, err := s.findAttachment(ctx, job.ID, pack, offset)
	if err != nil {
		return err
	}
	sum, err := hex.DecodeString(found.SHA256)
	if err != nil {
		return notAvailable()
	}
	form := representation{
		coding: identity, size: found.Size, etag: `"` + found.SHA256 + `"`,
		digest: "sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":",
	}
	open := func(ctx context.Context, part byteRange) (io.ReadCloser, error) {
		stored, err := s.openObject(ctx, job.ID, export.PackKey(job.ID, pack.Name), begin+part.start, part.length)
		if err != nil || part.length < found.Size {
			return stored, err
		}
		return reading{newWhole(stored, found.Size, found.SHA256), stored}, nil
	}
	_, kind := parseRange(c.Request.Header.Values("Range"), found.Size)
	ranged := kind != wholeFile && c.Request.Method == http.MethodGet && rangeApplies(c.Request.Header, form.etag)
	c.Header("Content-Disposition", "attachment") // never shown as a page of this server
	return s.deliver(c, job.ID, download{c.Param("name"), found.ContentType, form, open}, ranged)
}

// findAttachment reads the description at the offset of a pack, and returns the offset of the content. At any other offset
// is no attachment.
func (s *service) findAttachment(
	ctx context.Context, job export.JobID, pack export.Pack, offset int64,
) (found export.Attachment, begin int64, err error) {
	if offset >= pack.Stored {
		return found, 0, notAvailable()
	}
	stored, err := s.openObject(ctx, job, export.PackKey(job, pack.Name), offset, export.MaxAttachmentHeader)
	if err != nil {
		return found, 0, err
	}
	head, err := io.ReadAll(stored)
	if err := errors.Join(err, stored.Close()); err != nil {
		return found, 0, fmt.Errorf("reading a description of an attachment of job %s: %w", job, err)
	}
	found, length, err := export.DecodeAttachment(head)
	begin = offset + int64(length)
	if err != nil || found.Size > pack.Stored-begin {
		return found, 0, notAvailable()
	}
	return found, begin, nil
}
