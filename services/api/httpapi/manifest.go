package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// manifestItem is one file in the manifest.
type manifestItem struct {
	Type      string         `json:"type,omitempty"` // "" if the lines are blocks of patients (P-37)
	URL       string         `json:"url"`
	Continues string         `json:"continuesInFile,omitempty"` // URL of the file in which the last block goes on
	Count     int64          `json:"count"`
	Extension *itemExtension `json:"extension,omitempty"` // nil without a digest
}

// itemExtension describes the file (M-14).
type itemExtension struct {
	SHA256  string `json:"sha256"`            // of its gzip form, lower-case hex
	Size    int64  `json:"size"`              // bytes of its gzip form
	Bytes   int64  `json:"bytes"`             // bytes of its text
	Encoder string `json:"encoder,omitempty"` // what made the gzip form of the text: gzipblocks.Encoder
}

// manifest streams the manifest of a completed job (spec 3) with its signature. It renders it twice, first for the
// signature, which is in the header, because the number of files is unbounded. What it renders never changes.
func (s *service) manifest(c *gin.Context, job export.Job) error {
	end, err := s.manifests.begin(principalOf(c).Owner, s.DownloadLimit)
	if err != nil {
		return err
	}
	defer end()
	ctx := c.Request.Context()
	signature, err := s.sign(ctx, job)
	if err != nil {
		return err
	}
	if err := s.recordEvent(c, succeeded(audit.Status, job.ID, http.StatusOK)); err != nil {
		return err
	}
	c.Header("Content-Type", plainJSON)
	c.Header("Expires", httpDate(job.Expires))
	c.Header("X-Progress", "completed")
	c.Header(signatureHeader, signature)
	writeHeader(c, http.StatusOK)
	if c.Request.Method == http.MethodHead {
		return nil
	}
	// From here on refuse cuts the connection on an error, because the header is sent.
	return s.render(ctx, toClient{c.Writer}, job)
}

// render writes the manifest. It reads the sealed list of files once for each list of the manifest.
func (s *service) render(ctx context.Context, to io.Writer, job export.Job) error {
	out := bufio.NewWriterSize(to, 32<<10) // it keeps its first error
	_, _ = fmt.Fprintf(out, `{"transactionTime":%q,"request":%s,"requiresAccessToken":true`,
		job.TransactionTime().Format(time.RFC3339), bytes.TrimSpace(encode(job.Request.URL)))
	if by := job.Request.OrganizedBy; by != "" {
		_, _ = fmt.Fprintf(out, `,"outputOrganizedBy":%q`, by)
	}
	for _, list := range []string{"output", "deleted", "error"} {
		_, _ = out.WriteString(`,"` + list + `":[`)
		if list != "deleted" || job.Request.Incremental() { // M-09
			if err := s.writeList(ctx, out, job, list); err != nil {
				return err
			}
		}
		_, _ = out.WriteString("]")
	}
	if job.Resources != nil {
		_, _ = fmt.Fprintf(out, `,"extension":{"resources":%s}`, bytes.TrimSpace(encode(job.Resources)))
	}
	_, _ = out.WriteString("}\n")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("writing the manifest of job %s: %w", job.ID, err)
	}
	return nil
}

// listOf returns the list of the manifest that the file belongs to.
func listOf(file export.File) string {
	switch {
	case file.Error:
		return "error"
	case file.Deleted:
		return "deleted"
	}
	return "output"
}

// openList opens the sealed list of files and reads its first byte, or its end, so that an unavailable store is detected. A
// job without a list has no files.
func (s *service) openList(ctx context.Context, job export.Job) (io.ReadCloser, error) {
	if job.Manifest == "" {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	list, err := s.openObject(ctx, job.ID, job.Manifest, 0, -1)
	if err != nil {
		return nil, err
	}
	return reading{newWhole(list, -1, job.Digest), list}, nil
}

// writeList writes one of the manifest's lists.
func (s *service) writeList(ctx context.Context, out *bufio.Writer, job export.Job, list string) error {
	files, err := s.openList(ctx, job)
	if err != nil {
		return err
	}
	defer func() { _ = files.Close() }() // read only
	return s.writeItems(out, job, files, list)
}

// writeItems writes the items of the files that belong to the list.
func (s *service) writeItems(out *bufio.Writer, job export.Job, files io.Reader, list string) error {
	lines := json.NewDecoder(files)
	separator := ""
	for {
		var file export.File
		err := lines.Decode(&file)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the list of files of job %s: %w", job.ID, err)
		}
		if listOf(file) != list {
			continue
		}
		listed := manifestItem{Type: file.Type, URL: s.fileURL(job.ID, file.Name), Count: file.Count}
		if file.Organized() {
			listed.Type = ""
		}
		if file.Continues != "" {
			listed.Continues = s.fileURL(job.ID, file.Continues)
		}
		if file.SHA256 != "" {
			listed.Extension = &itemExtension{file.SHA256, file.Stored, file.Bytes, file.Encoder}
		}
		item, err := json.Marshal(listed)
		if err != nil {
			return fmt.Errorf("encoding file %s of job %s: %w", file.Name, job.ID, err)
		}
		if _, err := out.WriteString(separator + string(item)); err != nil {
			return fmt.Errorf("writing the manifest of job %s: %w", job.ID, err)
		}
		separator = ","
	}
}
