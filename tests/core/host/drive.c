/* Runs the C decoder on the cases that stdin has, for the tests.
 *
 * TABLES is the header of a network, NETWORK its name. `drive detect` reads, for each case, a `request` and the tensors,
 * and writes the number of boxes and the boxes. `drive fill` reads a canvas and writes the input. `drive fit 480 640` says
 * where a picture lies, `drive names` the classes. Everything has memory of its exact size, so that a sanitizer sees what
 * reaches beyond. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include TABLES

typedef struct {
    double overlap;
    float score;
    int max_detections, candidates, is_agnostic, is_own, capacity, height, width;
} request;

static size_t size_of(const detloom_tensor *tensor)
{
    static const size_t bytes[] = {1, 1, 2, 2, 4};
    return bytes[tensor->type] * (size_t)tensor->height * (size_t)tensor->width * (size_t)tensor->channels;
}

static void *room(size_t size)
{
    void *memory = malloc(size);
    if (memory == NULL)
        exit(2);
    return memory;
}

static void detect(const request *asked)
{
    detloom_selection selection = {asked->score, asked->overlap, asked->max_detections, asked->candidates,
                                   asked->is_agnostic};
    void **tensors = room((size_t)NETWORK.num_tensors * sizeof *tensors);
    detloom_box *boxes = room((size_t)asked->capacity * sizeof *boxes);
    for (int n = 0; n < NETWORK.num_tensors; n++) {
        size_t size = size_of(&NETWORK.tensors[n]);
        tensors[n] = room(size);
        if (fread(tensors[n], 1, size, stdin) != size)
            exit(3);
    }
    int count = detloom_detect(&NETWORK, asked->is_own ? NULL : &selection, (const void *const *)tensors, boxes,
                               asked->capacity);
    if (asked->height > 0) {
        detloom_fit fit = detloom_fit_picture(&NETWORK, asked->height, asked->width);
        count = detloom_to_picture(&fit, boxes, count);
    }
    fwrite(&count, sizeof count, 1, stdout);
    fwrite(boxes, sizeof *boxes, (size_t)count, stdout);
    for (int n = 0; n < NETWORK.num_tensors; n++)
        free(tensors[n]);
    free(tensors);
    free(boxes);
}

static void fill(void)
{
    size_t pixels = (size_t)NETWORK.input.height * (size_t)NETWORK.input.width * 3;
    uint8_t *canvas = room(pixels);
    void *input = room(size_of(&NETWORK.input));
    if (fread(canvas, 1, pixels, stdin) != pixels)
        exit(3);
    detloom_fill_input(&NETWORK, canvas, input);
    fwrite(input, 1, size_of(&NETWORK.input), stdout);
    free(canvas);
    free(input);
}

int main(int count, char **words)
{
    request asked;
    if (count == 2 && strcmp(words[1], "names") == 0)
        for (int n = 0; n < NETWORK.num_classes; n++)
            puts(NETWORK.names[n]);
    else if (count == 2 && strcmp(words[1], "fill") == 0)
        fill();
    else if (count == 4 && strcmp(words[1], "fit") == 0) {
        detloom_fit fit = detloom_fit_picture(&NETWORK, atoi(words[2]), atoi(words[3]));
        printf("%d %d %d %d\n", fit.rows, fit.columns, fit.top, fit.left);
    } else
        while (fread(&asked, sizeof asked, 1, stdin) == 1)
            detect(&asked);
    return 0;
}
