package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
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

// pageItems is how many files a page of a manifest lists at most.
const pageItems = 1000

// manifest streams the manifest of a completed job (spec 3) with its signature. It renders it twice, first for the
// signature, which is in the header, because the number of files is unbounded. What it renders never changes.
func (s *service) manifest(c *gin.Context, job export.Job) error {
	page, err := pageOf(c, job)
	if err != nil {
		return err
	}
	end, err := s.manifests.begin(principalOf(c).Owner, s.DownloadLimit)
	if err != nil {
		return err
	}
	defer end()
	ctx := c.Request.Context()
	signature, err := s.sign(ctx, job, page)
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
	writeHeader(c, pollStatus(c, job, http.StatusOK))
	if c.Request.Method == http.MethodHead {
		return nil
	}
	// From here on refuse cuts the connection on an error, because the header is sent.
	return s.render(ctx, toClient{c.Writer}, job, page)
}

// pageOf returns the number of the requested page, from 1. Only a manifest that the kick-off allowed to be partial has more
// than one (P-39).
func pageOf(c *gin.Context, job export.Job) (int, error) {
	text, given := c.GetQuery("page")
	if !job.Request.Partial || !given {
		return 1, nil
	}
	page, err := strconv.ParseInt(text, 10, 32)
	if err != nil || page < 1 {
		return 0, invalid("The parameter page must be the number of a page.")
	}
	return int(page), nil
}

// render writes the manifest, or one page of it: a part of the sealed list of files, and the link of the next page. It
// reads the list once for each list of the manifest. A page that does not exist is a refusal.
func (s *service) render(ctx context.Context, to io.Writer, job export.Job, page int) error {
	first, end := 0, math.MaxInt
	if job.Request.Partial {
		first, end = (page-1)*pageItems, page*pageItems
	}
	out := bufio.NewWriterSize(to, 32<<10) // it keeps its first error
	_, _ = fmt.Fprintf(out, `{"transactionTime":%q,"request":%s,"requiresAccessToken":true`,
		job.TransactionTime().Format(time.RFC3339), bytes.TrimSpace(encode(job.Request.URL)))
	if job.Request.OrganizedBy != "" { // M-16
		_, _ = fmt.Fprintf(out, `,"outputOrganizedBy":%q`, job.Request.OrganizedBy)
	}
	files := 0
	for _, list := range []string{"output", "deleted", "error"} {
		_, _ = out.WriteString(`,"` + list + `":[`)
		if list != "deleted" || job.Request.Incremental() { // M-09
			var err error
			if files, err = s.writeList(ctx, out, job, list, first, end); err != nil {
				return err
			}
		}
		_, _ = out.WriteString("]")
	}
	if page > 1 && files <= first {
		return notAvailable()
	}
	if files > end {
		next := []link{{"next", s.statusURL(job.ID) + "?page=" + strconv.Itoa(page+1)}}
		_, _ = fmt.Fprintf(out, `,"link":%s`, bytes.TrimSpace(encode(next)))
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

// writeList writes one of the manifest's lists. It returns the number of all files.
func (s *service) writeList(
	ctx context.Context, out *bufio.Writer, job export.Job, list string, first, end int,
) (int, error) {
	sealed, err := s.openList(ctx, job)
	if err != nil {
		return 0, err
	}
	defer func() { _ = sealed.Close() }() // read only
	return s.writeItems(out, job, sealed, list, first, end)
}

// writeItems writes the items of the files from number first to end that belong to the list. It returns the number of all
// files.
func (s *service) writeItems(
	out *bufio.Writer, job export.Job, sealed io.Reader, list string, first, end int,
) (files int, err error) {
	lines := json.NewDecoder(sealed)
	separator := ""
	for ; ; files++ {
		var file export.File
		err := lines.Decode(&file)
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return files, fmt.Errorf("reading the list of files of job %s: %w", job.ID, err)
		}
		if files < first || files >= end || listOf(file) != list {
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
			return files, fmt.Errorf("encoding file %s of job %s: %w", file.Name, job.ID, err)
		}
		if _, err := out.WriteString(separator + string(item)); err != nil {
			return files, fmt.Errorf("writing the manifest of job %s: %w", job.ID, err)
		}
		separator = ","
	}
}
