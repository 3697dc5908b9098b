/* SPDX-License-Identifier: Apache-2.0
 *
 * See detloom_host.h. Which boxes are kept is the same as in detloom's suppression, borderline overlaps included.
 */
#include "detloom_host.h"

#include <float.h>
#include <math.h>

/* Classes lie this many pixels apart, or more for larger pictures, up to this many classes; see `overlap`. */
#define SPACING 4096.0f
#define MOST_CLASSES_IN_FLOAT 128

/* Logits are compared with a limit a little lower, and scores exactly afterwards. */
#define MARGIN 1e-5

/* One prior of one cell, in one image's tensors. */
typedef struct {
    const detloom_network *network;
    const void *const *tensors;
    const detloom_level *level;
    int row, column, prior;
} place;

/* The best candidates so far, as a heap with the worst on top. */
typedef struct {
    detloom_box *boxes;
    int count, limit;
    float low, high; /* extent of all candidates, those that were left out included */
} pool;

static float from_half(uint16_t bits)
{
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 0    ? ldexpf((float)fraction, -24)
                 : exponent == 31 ? (fraction ? NAN : INFINITY)
                                  : ldexpf((float)(fraction + 1024), exponent - 25);
    return bits >> 15 ? -size : size;
}

/* Returns the half that is nearest to a number from 2^-14 to 1, or 0. */
static uint16_t to_half(float number)
{
    int exponent;
    float fraction = frexpf(number, &exponent);
    int bits = number > 0 ? (exponent + 14) * 1024 + (int)rintf(fraction * 2048) - 1024 : 0;
    return (uint16_t)bits;
}

static float read(const detloom_tensor *tensor, const void *data, size_t index)
{
    float q = 0;
    switch (tensor->type) {
    case DETLOOM_INT8: q = ((const int8_t *)data)[index]; break;
    case DETLOOM_UINT8: q = ((const uint8_t *)data)[index]; break;
    case DETLOOM_INT16: q = ((const int16_t *)data)[index]; break;
    case DETLOOM_FLOAT16: q = from_half(((const uint16_t *)data)[index]); break;
    case DETLOOM_FLOAT32: q = ((const float *)data)[index]; break;
    }
    return tensor->scale > 0 ? (q - (float)tensor->zero_point) * tensor->scale : q;
}

/* Returns where a number of an image lies in its tensor. */
static size_t index_of(const detloom_tensor *tensor, int row, int column, int channel)
{
    size_t height = (size_t)tensor->height, width = (size_t)tensor->width, channels = (size_t)tensor->channels;
    if (tensor->is_channels_last)
        return ((size_t)row * width + (size_t)column) * channels + (size_t)channel;
    return ((size_t)channel * height + (size_t)row) * width + (size_t)column;
}

/* Returns number n of an output, real. */
static float raw(const place *at, const detloom_output *output, int n)
{
    const detloom_tensor *tensor = &at->network->tensors[output->tensor];
    int channel = output->first + at->prior * output->step + n;
    return read(tensor, at->tensors[output->tensor], index_of(tensor, at->row, at->column, channel));
}

static float activated(detloom_activation activation, float t)
{
    switch (activation) {
    case DETLOOM_SIGMOID: return 1 / (1 + expf(-t));
    case DETLOOM_EXP: return expf(t);
    case DETLOOM_IDENTITY: break;
    }
    return t;
}

static void box_by_center(const place *at, detloom_box *box)
{
    const detloom_network *network = at->network;
    const float *prior = at->level->priors[at->prior];
    float stride = (float)at->level->stride;
    float cell[2], low[2], high[2];
    cell[0] = (float)at->column;
    cell[1] = (float)at->row;
    for (int axis = 0; axis < 2; axis++) {
        float t = raw(at, &at->level->center, axis);
        float center = network->center_scale * activated(network->center_activation, t) + network->center_shift;
        t = raw(at, &at->level->size, axis);
        /* Not fminf, which would make a number of NaN. */
        t = t > network->size_limit ? network->size_limit : t;
        float root = network->size_scale * activated(network->size_activation, t);
        float size = powf(root, network->size_exponent) * (network->size_in_priors ? prior[axis] : stride);
        center = (center + cell[axis]) * stride;
        low[axis] = center - size / 2;
        high[axis] = center + size / 2;
    }
    box->x1 = low[0], box->y1 = low[1], box->x2 = high[0], box->y2 = high[1];
}

/* Returns the mean of 0 .. bins - 1, weighted by the softmax of a side's logits. */
static float mean_distance(const place *at, int side)
{
    int bins = at->network->bins;
    float most = -INFINITY, weights = 0, sum = 0;
    for (int bin = 0; bin < bins; bin++)
        most = fmaxf(most, raw(at, &at->level->distances, side * bins + bin));
    for (int bin = 0; bin < bins; bin++) {
        float weight = expf(raw(at, &at->level->distances, side * bins + bin) - most);
        weights += weight;
        sum += weight * (float)bin;
    }
    return sum / weights;
}

static void box_by_distances(const place *at, detloom_box *box)
{
    float stride = (float)at->level->stride;
    float x = ((float)at->column + 0.5f) * stride, y = ((float)at->row + 0.5f) * stride;
    box->x1 = x - mean_distance(at, 0) * stride;
    box->y1 = y - mean_distance(at, 1) * stride;
    box->x2 = x + mean_distance(at, 2) * stride;
    box->y2 = y + mean_distance(at, 3) * stride;
}

/* Finds the best class and its logit; NaN where one of the logits is. */
static float best_class(const place *at, int *label)
{
    float best = -INFINITY;
    *label = 0;
    for (int n = 0; n < at->network->num_classes; n++) {
        float t = raw(at, &at->level->classes, n);
        if (isnan(t))
            return t;
        if (t > best)
            best = t, *label = n;
    }
    return best;
}

/* Decodes the box of a prior if it scores enough; returns whether it does. */
static int decode(const place *at, float floor, float least, detloom_box *box)
{
    float score = 1;
    box->label = 0;
    if (at->network->score_has_objectness) {
        float t = raw(at, &at->level->objectness, 0);
        if (!(t > floor))
            return 0;
        score = activated(DETLOOM_SIGMOID, t);
    }
    if (at->network->score_has_classes) {
        float t = best_class(at, &box->label);
        if (!(t > floor))
            return 0;
        score *= activated(DETLOOM_SIGMOID, t);
    }
    box->score = score;
    if (!(score > least))
        return 0;
    if (at->network->form == DETLOOM_DISTANCES)
        box_by_distances(at, box);
    else
        box_by_center(at, box);
    return isfinite(box->x1 + box->y1 + box->x2 + box->y2);
}

/* Of equal scores the first prior is the better. */
static int is_worse(const detloom_box *a, const detloom_box *b)
{
    return a->score < b->score || (a->score == b->score && a->prior > b->prior);
}

/* Lets a box sink from the top of a heap to its place. */
static void sink(detloom_box *boxes, int count, detloom_box box)
{
    int hole = 0;
    for (int child = 1; child < count; child = 2 * hole + 1) {
        if (child + 1 < count && is_worse(&boxes[child + 1], &boxes[child]))
            child++;
        if (!is_worse(&boxes[child], &box))
            break;
        boxes[hole] = boxes[child];
        hole = child;
    }
    boxes[hole] = box;
}

static void add(pool *best, const detloom_box *box)
{
    best->low = fminf(best->low, fminf(fminf(box->x1, box->y1), fminf(box->x2, box->y2)));
    best->high = fmaxf(best->high, fmaxf(fmaxf(box->x1, box->y1), fmaxf(box->x2, box->y2)));
    if (best->count < best->limit) {
        int hole = best->count++;
        for (; hole > 0 && is_worse(box, &best->boxes[(hole - 1) / 2]); hole = (hole - 1) / 2)
            best->boxes[hole] = best->boxes[(hole - 1) / 2];
        best->boxes[hole] = *box;
    } else if (best->count > 0 && is_worse(&best->boxes[0], box)) {
        sink(best->boxes, best->count, *box);
    }
}

static void collect(const detloom_network *network, const void *const *tensors, float least, pool *best)
{
    double limit = least * (1 - MARGIN);
    float floor = limit > 0 ? (float)(log(limit) - log1p(-limit)) : -INFINITY;
    place at = {network, tensors, NULL, 0, 0, 0};
    detloom_box box = {0, 0, 0, 0, 0, 0, 0};
    for (int n = 0; n < network->num_levels; n++) {
        at.level = &network->levels[n];
        const detloom_output *any = network->form == DETLOOM_DISTANCES ? &at.level->distances : &at.level->center;
        const detloom_tensor *map = &network->tensors[any->tensor];
        for (at.row = 0; at.row < map->height; at.row++)
            for (at.column = 0; at.column < map->width; at.column++)
                for (at.prior = 0; at.prior < at.level->num_priors; at.prior++, box.prior++)
                    if (decode(&at, floor, least, &box))
                        add(best, &box);
    }
}

static void sort(detloom_box *boxes, int count)
{
    for (int last = count - 1; last > 0; last--) {
        detloom_box box = boxes[last];
        boxes[last] = boxes[0];
        sink(boxes, last, box);
    }
}

/* Returns the IoU of two boxes that are moved, which rounds them: borderline overlaps then fall as in detloom. */
static double overlap(const detloom_box *a, const detloom_box *b, float move)
{
    double ax1 = (float)(a->x1 + move), ay1 = (float)(a->y1 + move);
    double ax2 = (float)(a->x2 + move), ay2 = (float)(a->y2 + move);
    double bx1 = (float)(b->x1 + move), by1 = (float)(b->y1 + move);
    double bx2 = (float)(b->x2 + move), by2 = (float)(b->y2 + move);
    double width = fmin(ax2, bx2) - fmax(ax1, bx1), height = fmin(ay2, by2) - fmax(ay1, by1);
    double common = fmax(width, 0) * fmax(height, 0);
    double both = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common;
    /* Two boxes without extent overlap by 0/0, which is above no limit. */
    return common / both;
}

static int suppress(const detloom_network *network, const detloom_selection *selection, const pool *best)
{
    detloom_box *boxes = best->boxes;
    int moves = !selection->is_agnostic && network->num_classes <= MOST_CLASSES_IN_FLOAT;
    float spacing = moves ? fmaxf(best->high - best->low + 1, SPACING) : 0;
    int kept = 0;
    for (int n = 0; n < best->count && kept < selection->max_detections; n++) {
        int is_kept = 1;
        for (int k = 0; k < kept && is_kept; k++)
            if (selection->is_agnostic || boxes[k].label == boxes[n].label)
                is_kept = !(overlap(&boxes[k], &boxes[n], spacing * (float)boxes[n].label) > selection->overlap);
        if (is_kept)
            boxes[kept++] = boxes[n];
    }
    return kept;
}

int detloom_detect(const detloom_network *network, const detloom_selection *selection, const void *const *tensors,
                   detloom_box *boxes, int capacity)
{
    if (selection == NULL)
        selection = &network->selection;
    int limit = network->has_suppression ? selection->candidates : selection->max_detections;
    pool best = {boxes, 0, limit < capacity ? limit : capacity, FLT_MAX, -FLT_MAX};
    collect(network, tensors, selection->score, &best);
    sort(boxes, best.count);
    return network->has_suppression ? suppress(network, selection, &best) : best.count;
}

detloom_fit detloom_fit_picture(const detloom_network *network, int height, int width)
{
    const detloom_tensor *input = &network->input;
    double ratio = fmin((double)input->height / height, (double)input->width / width);
    detloom_fit fit = {height, width, 0, 0, 0, 0, (float)ratio, 0, 0};
    fit.rows = (int)fmax(rint(height * ratio), 1);
    fit.columns = (int)fmax(rint(width * ratio), 1);
    fit.top = (input->height - fit.rows) / 2;
    fit.left = (input->width - fit.columns) / 2;
    fit.x = (float)((input->width - width * ratio) / 2);
    fit.y = (float)((input->height - height * ratio) / 2);
    return fit;
}

static float mapped(float side, float offset, float ratio, int most)
{
    return fminf(fmaxf((side - offset) / ratio, 0), (float)most);
}

int detloom_to_picture(const detloom_fit *fit, detloom_box *boxes, int count)
{
    int kept = 0;
    for (int n = 0; n < count; n++) {
        detloom_box box = boxes[n];
        box.x1 = mapped(box.x1, fit->x, fit->ratio, fit->width);
        box.y1 = mapped(box.y1, fit->y, fit->ratio, fit->height);
        box.x2 = mapped(box.x2, fit->x, fit->ratio, fit->width);
        box.y2 = mapped(box.y2, fit->y, fit->ratio, fit->height);
        if (box.x2 > box.x1 && box.y2 > box.y1)
            boxes[kept++] = box;
    }
    return kept;
}

void detloom_fill_input(const detloom_network *network, const uint8_t *canvas, void *input)
{
    const detloom_tensor *tensor = &network->input;
    double least = tensor->type == DETLOOM_INT8 ? -128 : tensor->type == DETLOOM_INT16 ? -32768 : 0;
    double most = tensor->type == DETLOOM_INT8 ? 127 : tensor->type == DETLOOM_INT16 ? 32767 : 255;
    for (int row = 0; row < tensor->height; row++)
        for (int column = 0; column < tensor->width; column++)
            for (int channel = 0; channel < 3; channel++, canvas++) {
                size_t index = index_of(tensor, row, column, channel);
                float real = (float)*canvas / 255;
                double q = tensor->scale > 0 ? rint((double)real / tensor->scale) + tensor->zero_point : 0;
                q = fmin(fmax(q, least), most);
                switch (tensor->type) {
                case DETLOOM_INT8: ((int8_t *)input)[index] = (int8_t)q; break;
                case DETLOOM_UINT8: ((uint8_t *)input)[index] = (uint8_t)q; break;
                case DETLOOM_INT16: ((int16_t *)input)[index] = (int16_t)q; break;
                case DETLOOM_FLOAT16: ((uint16_t *)input)[index] = to_half(real); break;
                case DETLOOM_FLOAT32: ((float *)input)[index] = real; break;
                }
            }
}
