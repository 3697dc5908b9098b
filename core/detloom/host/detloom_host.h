/* SPDX-License-Identifier: Apache-2.0
 *
 * From the raw outputs of an exported network to boxes, in C99 on the standard library alone; nothing is allocated.
 * Compile it without -ffast-math: numbers that are none must be told from others.
 *
 *     #include "NAME_host.h"                                   // written beside the exported file
 *
 *     static detloom_box boxes[1000];                          // room for candidates; the detections come first
 *     const void *tensors[] = {stride8, stride16, stride32};   // as the file has them, in the order of NAME_network
 *     detloom_fit fit = detloom_fit_picture(&NAME_network, 480, 640);
 *     int count = detloom_detect(&NAME_network, NULL, tensors, boxes, 1000);
 *     count = detloom_to_picture(&fit, boxes, count);          // boxes[0 .. count - 1], best first
 */
#ifndef DETLOOM_HOST_H
#define DETLOOM_HOST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { DETLOOM_INT8, DETLOOM_UINT8, DETLOOM_INT16, DETLOOM_FLOAT16, DETLOOM_FLOAT32 } detloom_type;
typedef enum { DETLOOM_IDENTITY, DETLOOM_SIGMOID, DETLOOM_EXP } detloom_activation;
typedef enum { DETLOOM_CENTER_AND_SIZE, DETLOOM_DISTANCES } detloom_form;

/* A tensor of one image. The real value of q is (q - zero_point) * scale, and q itself where the scale is 0. */
typedef struct {
    detloom_type type;
    int is_channels_last;
    int height, width, channels;
    float scale;
    int32_t zero_point;
} detloom_tensor;

/* Where an output lies: prior n of a cell has it from channel first + n * step of a tensor; none where that is -1. */
typedef struct {
    int tensor, first, step;
} detloom_output;

typedef struct {
    int stride;
    int num_priors;
    const float (*priors)[2]; /* width and height in pixels */
    detloom_output center, size, distances, objectness, classes;
} detloom_level;

typedef struct {
    float score;        /* least score, from 0 to 1 */
    double overlap;     /* IoU from which the lesser of two boxes is dropped */
    int max_detections; /* of a picture */
    int candidates;     /* most boxes that enter the suppression */
    int is_agnostic;    /* whether boxes of different classes suppress one another */
} detloom_selection;

/* A box comes of center and size,
 *     center = (center_scale * f(t) + center_shift + cell) * stride
 *     size   = (size_scale * f(min(t, size_limit))) ^ size_exponent * (prior, or stride),
 * or of distances from the cell's centre, each the mean of 0 .. bins - 1 weighted by the softmax, in strides. */
typedef struct {
    const char *const *names; /* of the classes */
    int num_classes;
    detloom_tensor input;
    uint8_t fill; /* value of the input's pixels where there is no picture */
    int num_tensors;
    const detloom_tensor *tensors;
    int num_levels;
    const detloom_level *levels;
    detloom_form form;
    detloom_activation center_activation, size_activation;
    float center_scale, center_shift;
    float size_limit, size_scale, size_exponent;
    int size_in_priors;
    int bins;
    int score_has_objectness, score_has_classes;
    int has_suppression;
    detloom_selection selection;
} detloom_network;

typedef struct {
    float x1, y1, x2, y2;
    float score;
    int label;
    int32_t prior; /* which made it: by level, row, column, prior of the cell */
} detloom_box;

/* Where a picture lies on the input: as large as it goes, in the middle, the rest filled. */
typedef struct {
    int height, width; /* of the picture */
    int rows, columns; /* of the picture on the input, to which it is scaled */
    int top, left;     /* of its first pixel there */
    float ratio, x, y; /* how boxes are mapped */
} detloom_fit;

/* Writes the detections of one image to boxes, best first, in pixels of the input; returns how many.
 *
 * selection: NULL for the network's own.
 * tensors: the outputs, in the order of network->tensors.
 * boxes: room for `capacity` candidates. Where there are more, the best are taken; as many as the selection's
 *     candidates are never too few, and without a suppression as many as its max_detections. */
int detloom_detect(const detloom_network *network, const detloom_selection *selection, const void *const *tensors,
                   detloom_box *boxes, int capacity);

/* Returns where a picture of a size lies on the input. */
detloom_fit detloom_fit_picture(const detloom_network *network, int height, int width);

/* Maps boxes to pixels of the picture and clips them to it; leaves out what lies beside it; returns how many stay. */
int detloom_to_picture(const detloom_fit *fit, detloom_box *boxes, int count);

/* Fills the input from an RGB picture of its size, rows of red, green, blue.
 * The input may be the picture's own memory where it is channels last and of 8 bits. */
void detloom_fill_input(const detloom_network *network, const uint8_t *canvas, void *input);

#ifdef __cplusplus
}
#endif

#endif
