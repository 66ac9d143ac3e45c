package httpapi

import (
	"fmt"
	"net/http"
	"path"

	"github.com/gin-gonic/gin"
)

const (
	maxURL        = 8 << 10 // bytes of path and query: all type names together are about 1 KiB
	maxParameters = 100     // in one query string
	maxBody       = 64 << 10
)

// bound refuses requests that are bigger than any that this API understands, before anything reads them.
func (s *service) bound(c *gin.Context) {
	if len(c.Request.RequestURI) > maxURL {
		s.refuse(c, refusal{
			status: http.StatusRequestURITooLong, code: "too-long",
			text: fmt.Sprintf("The request's URL is longer than %d bytes.", maxURL),
		})
		return
	}
	if c.Request.ContentLength > maxBody {
		s.refuse(c, refusal{
			status: http.StatusRequestEntityTooLarge, code: "too-long",
			text: fmt.Sprintf("The request's body is longer than %d bytes.", maxBody),
		})
		return
	}
	c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, maxBody)
}

// joinPath is the route template below the base path, in the form in which Gin reports it.
func joinPath(base, route string) string { return path.Join("/", base, route) }
